"""Finished folders that were damaged or edited."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.hostile_inputs.case import Case
from tests.benchmarks.hostile_inputs.fixture import write

SAMPLE = "sample done/image_pipeline -o out -n 2"
# What a command cannot do without.
NEEDED = {
    "done/tokenizer/best/config.json": "inspect done/tokenizer",
    "done/tokenizer/recipe.yaml": "encode done/tokenizer -o out",
    "done/prior/best/config.json": "inspect done/prior",
    "done/prior/recipe.yaml": "train prior.yaml tokens=done/tokens output=done/prior",
    "done/recipe.yaml": "encode done/image_pipeline -o out",
    "done/tokens/manifest.json": "inspect done/tokens",
    "done/tokens/token_spec.json": "inspect done/tokens",
    "done/tokens/baselines.safetensors": "train prior.yaml tokens=done/tokens",
    "done/tokens/tokenizer/config.json": "decode done/tokens -o out",
    "done/image_pipeline/model_index.json": SAMPLE,
    "done/image_pipeline/tokenizer/config.json": SAMPLE,
    "done/image_pipeline/prior/config.json": SAMPLE,
}
# What a command may make again.
REPLACEABLE = {
    "done/image_pipeline/generation_config.json": SAMPLE,
    "done/samples/request.json": "run pipeline.yaml",
    "done/samples/samples.json": "run pipeline.yaml",
    "done/samples/images/00000_red-circle.png": "sample done -o done/samples -n 8",
    "done/reconstructions/reconstruction.json": "run pipeline.yaml",
    "done/report.json": "run pipeline.yaml",
    "done/seconds.json": "run pipeline.yaml",
    "done/.smalti.json": "run pipeline.yaml",
    "done/tokenizer/done.json": "train tokenizer.yaml output=done/tokenizer",
    "done/tokenizer/inputs.json": "train tokenizer.yaml output=done/tokenizer",
    "done/tokens/.smalti.json": "encode done/tokenizer -o done/tokens",
    "done/decoded/decoded.json": "decode done/tokens -o done/decoded",
}
# What a run that has not ended continues from.
STATE = "done/tokenizer/state/step-00000004.pt"
CONTINUED = {
    STATE: (2,),
    "done/tokenizer/state/step-best.pt": (0, 2),
    "done/tokenizer/metrics.jsonl": (0, 2),
    "done/tokenizer/failure.json": (0, 2),
}
CONTENTS = {
    "empty": "",
    "a list": "[]",
    "half": '{"a":',
    "deep": "[" * 100_000,
    "null": "null",
    "binary": b"\xff\xfe" * 50,
    "empty mapping": "{}",
    "a step that is a text": '{"step": "many"}',
}
TOKENIZER_EDITS = {
    "model.bottleneck.num_codes": (10**12, 17, 0, -1, "many", None),
    "model.bottleneck.dim": (10**12, 5, 0),
    "model.backbone.widths": ([10**9], [4], [], [4, 9], [4] * 30),
    "model.backbone.residual_blocks": (10**9, 2),
    "model.image_size": (10**6, 31, 64),
    "model.channels": (1, 7),
    "preprocess.size": (10**6, 31),
    "format": ("other", None, 1),
    "fingerprint": ("0" * 64, None, 1),
    "weights_sha256": ("0" * 64, None),
    "cake": (1,),
}
PRIOR_EDITS = {
    "model.transformer.depth": (10**9, 2, 0),
    "model.transformer.dim": (10**9, 17),
    "model.transformer.heads": (10**9, 2),
    "model.transformer.ff_mult": (1e300, 8.0),
    "classes": (["red circle"], [], None, "abc"),
    "weights_sha256": ("0" * 64,),
    "token_spec.grid": ([10**6, 10**6, 1], [2, 2, 1], [8, 8]),
    "cake": (1,),
}


def edit_json(path: str, keys: str, value: Any) -> None:
    """Set `key.sub` of a JSON file; a number is the place in a list."""
    content = json.loads(Path(path).read_text())
    *parents, last = (int(key) if key.isdigit() else key for key in keys.split("."))
    node = content
    for parent in parents:
        node = node[parent]
    node[last] = value
    Path(path).write_text(json.dumps(content))


def replace_by(make: Callable[[Path], object], path: str) -> None:
    """Put something in the place of a file."""
    Path(path).unlink(missing_ok=True)
    make(Path(path))


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def replace_values(path: str, value: Any) -> None:
    keys = json.loads(Path(path).read_text()) if Path(path).exists() else ("step", "message")
    write(path, json.dumps(dict.fromkeys(keys, value)))


def damages(path: str) -> Iterator[tuple[str, Callable[[], None]]]:
    for name, content in CONTENTS.items():
        yield f"{path}: {name}", partial(write, path, content)
    for name, make in (("a folder", Path.mkdir), ("a named pipe", os.mkfifo), ("a link to itself", link_to_itself)):
        yield f"{path}: {name}", partial(replace_by, make, path)
    if path.endswith(".json"):
        for value in (None, [], 1, "x"):
            yield f"{path}: every value is {value!r}", partial(replace_values, path, value)


def damaged_files() -> Iterator[Case]:
    for files, allowed in ((NEEDED, (2,)), (REPLACEABLE, (0, 2))):
        for path, command in files.items():
            for name, damage in damages(path):
                yield Case("damaged file", name, command.split(), damage, allowed)


def unfinish(damage: Callable[[], None]) -> None:
    """Damage a run that has not ended: it has a state, and goes on from it."""
    Path("done/tokenizer/done.json").unlink()
    damage()


def save_state(content: Any) -> None:
    import torch

    torch.save(content, STATE)


def damaged_unfinished_runs() -> Iterator[Case]:
    found = [(*damage, allowed) for path, allowed in CONTINUED.items() for damage in damages(path)]
    for content in ({}, [], None, {"step": 4}, {"best": 1.0, "metrics": {}, "phases": {}}):
        found.append((f"{STATE}: {content}", partial(save_state, content), (2,)))
    for name, damage, allowed in found:
        command = ["train", "tokenizer.yaml", "output=done/tokenizer"]
        yield Case("damaged file", f"{name}, continued", command, partial(unfinish, damage), allowed)


def damaged_configs() -> Iterator[Case]:
    for part, edits in (("tokenizer", TOKENIZER_EDITS), ("prior", PRIOR_EDITS)):
        for key, values in edits.items():
            for value in values:
                edit = partial(edit_json, f"done/image_pipeline/{part}/config.json", key, value)
                yield Case("model config", f"{part} {key}: {str(value)[:20]}", SAMPLE.split(), edit)


def damaged_tokens() -> Iterator[Case]:
    command = ["train", "prior.yaml", "tokens=done/tokens"]
    for key, value in (("file", "../../../etc/passwd"), ("file", "/etc/passwd"), ("rows", 10**12), ("rows", -1)):
        edit = partial(edit_json, "done/tokens/manifest.json", f"splits.train.shards.0.{key}", value)
        yield Case("tokens", f"manifest {key}: {value}", command, edit)
    for name, content in (("empty shards", b""), ("texts as shards", b"hello" * 100)):
        yield Case("tokens", name, command, partial(replace_shards, content))
    yield Case("tokens", "no shards", command, partial(shutil.rmtree, "done/tokens/data"))


def replace_shards(content: bytes) -> None:
    for path in Path("done/tokens/data").glob("train*.parquet"):
        path.write_bytes(content)
