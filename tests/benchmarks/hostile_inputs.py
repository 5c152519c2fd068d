"""Inputs that no command can use: each is one message and exit code 2, without a traceback, soon and in little memory.

    python tests/benchmarks/hostile_inputs.py [-k WORD] [-v] [--patience 1]

Every case is a process of its own with a copy of a small finished pipeline. It passes if the process ends with exit
code 2 and a message on stderr, or with 0 where damage may be repaired, without a traceback or a library's warning,
within 10 seconds and 2 GiB.
`--patience 5` allows five times the seconds, on a machine that has other work.
Cases are forked from one process that has imported everything, so the seconds are those of the work alone.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS, BYTES = 10.0, 2 * 2**30

TOKENIZER = """
kind: tokenizer
output: out
data: {source: {kind: shapes, train: 64, validation: 16, test: 16}, preprocess: {size: 32}}
model:
  backbone: {kind: conv, widths: [4, 8], residual_blocks: 1, residual_width: 4}
  bottleneck: {kind: vq, num_codes: 16, dim: 4}
  likelihood: {kind: normal, scale: 0.2}
objective: {weights: {nll: 1, commitment: 0.25}}
training: {steps: 4, batch_size: 8, validate_every: 4, save_every: 4}
"""
PRIOR = """
kind: prior
output: out
tokens: tokens
condition: label
transformer: {dim: 16, depth: 1, heads: 1, head_dim: 16}
training: {steps: 4, batch_size: 8, validate_every: 4, save_every: 4}
"""
PIPELINE = "kind: pipeline\noutput: done\ntokenizer: tokenizer.yaml\nprior: prior.yaml\nsample: {%s: 4}\n"
FIXTURE_COMMANDS = (["run", "pipeline.yaml"], ["decode", "done/tokens", "-o", "done/decoded"])

Arguments = list[str]


@dataclass(frozen=True)
class Case:
    """`prepare` changes the case's own folder; `arguments` are then given to `smalti` there."""

    kind: str
    name: str
    arguments: Arguments
    prepare: Callable[[], object] = lambda: None
    allowed: tuple[int, ...] = (2,)


@dataclass(frozen=True)
class Outcome:
    case: Case
    exit_code: int | None
    seconds: float
    peak: int
    errors: str
    limit: float

    @property
    def failures(self) -> list[str]:
        found = []
        if self.exit_code is None:
            found.append("stopped from outside: too slow or too large")
        elif self.exit_code not in self.case.allowed:
            found.append(f"exit code {self.exit_code}")
        if "Traceback" in self.errors:
            found.append("traceback")
        if not self.errors.strip() and self.exit_code != 0:
            found.append("no message")
        if "Warning" in self.errors:
            found.append("a library's warning")
        if self.seconds > self.limit:
            found.append(f"{self.seconds:.1f} s")
        if self.peak > BYTES:
            found.append(f"{self.peak / 2**30:.1f} GiB")
        return found


def write(path: str, content: str | bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def edit_json(path: str, keys: str, value: Any) -> Callable[[], None]:
    def prepare() -> None:
        content = json.loads(Path(path).read_text())
        *parents, last = keys.split(".")
        node = content
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node[parent]
        node[int(last) if isinstance(node, list) else last] = value
        Path(path).write_text(json.dumps(content))

    return prepare


# --- documents ---------------------------------------------------------------------------------------------------

DOCUMENTS = {
    "empty": "",
    "a list": "- a\n- b\n",
    "a text": "just words",
    "null": "null",
    "unfinished": "a: [1",
    "binary": b"\xff\xfe\x00\x01" * 100,
    "utf-16": "kind: tokenizer".encode("utf-16"),
    "null byte": "kind: tokenizer\x00",
    "recursive anchor": "kind: tokenizer\nmodel: &a {x: *a}",
    "bomb of lists": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)),
    "bomb of mappings": "a: &a {x: 1}\n" + "".join(f"b{i}: &b{i} {{<<: *a, y: *a}}\n" for i in range(2000)),
    "3,000 nested lists": "kind: " + "[" * 3000 + "]" * 3000,
    "3,000 nested mappings": "kind: " + "{a: " * 3000 + "1" + "}" * 3000,
    "5,000 digits": "kind: tokenizer\nseed: " + "9" * 5000,
    "5,000 hexadecimal digits": "kind: tokenizer\nseed: 0x" + "f" * 5000,
    "duplicate keys": TOKENIZER + "seed: 1\nseed: 2\n",
    "a megabyte": "a: " + "x" * 2**20,
    "a key that is true": TOKENIZER + "on: 1\n",
    "a key that is a list": TOKENIZER + "? [a]\n: 1\n",
    "python object": TOKENIZER + "seed: !!python/object/apply:os.getpid []\n",
    "a wrong tag": TOKENIZER + "seed: !!int many\n",
    "another kind": "kind: cake\n",
    "no kind": "output: out\n",
    "kind is a list": "kind: [tokenizer]\n",
    "only the kind": "kind: tokenizer\n",
    "blocks are texts": "kind: tokenizer\noutput: out\ndata: x\nmodel: x\nobjective: x\ntraining: x\n",
    "blocks are null": "kind: tokenizer\noutput: out\ndata:\nmodel:\nobjective:\ntraining:\n",
    "blocks are lists": "kind: tokenizer\noutput: out\ndata: []\nmodel: []\nobjective: []\ntraining: []\n",
}


def documents() -> Iterator[Case]:
    for name, content in DOCUMENTS.items():
        arguments = ["train", "hostile.yaml"]
        yield Case("recipe", name, arguments, lambda content=content: write("hostile.yaml", content))
    for name in ("nowhere.yaml", ".", "/dev/zero", "/dev/null", "x" * 300 + ".yaml", "tokenizer.yaml/below", ""):
        yield Case("recipe", f"path {name[:20]!r}", ["train", name])
    for part in ("tokenizer", "prior"):
        for name in ("nowhere.yaml", ".", "x" * 300):
            text = f"kind: pipeline\noutput: out\ntokenizer: tokenizer.yaml\nprior: prior.yaml\n{part}: {name}\n"
            text = text.replace(f"{part}: {part}.yaml\n", "")
            yield Case("recipe", f"{part}: {name[:20]}", ["run", "p.yaml"], lambda text=text: write("p.yaml", text))


# --- values of a recipe ------------------------------------------------------------------------------------------

NUMBERS = ("nan", ".nan", ".inf", "-.inf", "-1", "1e400", "99999999999999999999999", "many", "[]", "{}", "null", "true")
INTEGERS = (
    "training.steps",
    "training.batch_size",
    "training.validate_every",
    "training.optimizer.warmup",
    "model.bottleneck.num_codes",
    "model.bottleneck.dim",
    "data.preprocess.size",
    "data.source.train",
)
REALS = ("training.optimizer.learning_rate", "training.optimizer.eps", "training.optimizer.weight_decay")
OVERRIDES = (
    "seed=99999999999999999999999",
    "seed=-1",
    "seed=1.5",
    "training.optimizer.betas=[1.5,0.9]",
    "training.optimizer.betas=[.nan,0.9]",
    "training.optimizer.betas=[0.9]",
    "training.optimizer.betas=[-1,0.9]",
    "training.ema_decay=1",
    "training.precision=no",
    "training.precision=fp16",
    "training.trackers=[magic]",
    "training.trackers=tensorboard",
    "training.batch_size=1000000000000",
    "training.batch_size=7 training.gradient_accumulation_steps=2",
    "data.preprocess.size=1000000",
    "data.preprocess.size=1000000 model.image_size=1000000",
    "data.preprocess.size=1",
    "data.preprocess.size=30",
    "data.preprocess.mode=CMYK",
    "data.preprocess.mode=L model.channels=3",
    "data.source.train=0",
    "data.source.kind=cake",
    "data.source={kind: torchvision, name: Cake}",
    "data.source={kind: torchvision, name: FakeData, arguments: {size: -5}}",
    "data.source={kind: torchvision, name: FakeData, arguments: {size: many}}",
    "data.source={kind: torchvision, name: FakeData, arguments: {cake: 1}}",
    "data.source={kind: torchvision, name: MNIST, root: /nowhere, download: false}",
    "data.source={kind: torchvision, name: ImageNet, root: .}",
    "data.source={kind: huggingface, path: ./nowhere}",
    "data.source={kind: huggingface, path: imagefolder, data_dir: nowhere}",
    "data.source={kind: huggingface, path: parquet, data_files: nowhere.parquet}",
    "data.source={kind: huggingface, path: parquet, data_files: recipe.yaml}",
    "data.source={kind: huggingface, path: imagefolder, data_dir: images, label: cake}",
    "data.source={kind: huggingface, path: imagefolder, data_dir: images, arguments: {streaming: true}}",
    "data.validation_fraction=1",
    "data.workers=-1",
    "data.workers=100000000",
    "data.max_pixels=0",
    "model.bottleneck.num_codes=1000000000000",
    "model.bottleneck.num_codes=9223372036854775807",
    "model.bottleneck.dim=1000000000000",
    "model.bottleneck.kind=magic",
    "model.bottleneck={kind: fsq, levels: []}",
    "model.bottleneck={kind: fsq, levels: [1]}",
    "model.bottleneck={kind: fsq, levels: [1000000000, 1000000000, 1000000000]}",
    "model.bottleneck={kind: fsq, levels: [0, -3]}",
    "model.bottleneck={kind: gaussian, dim: 1000000000000}",
    "model.backbone.widths=[]",
    "model.backbone.widths=[0]",
    "model.backbone.widths=[1000000000]",
    "model.backbone.widths=[4,4,4,4,4,4,4,4,4]",
    "model.backbone.residual_blocks=1000000000",
    "model.backbone.residual_width=1000000000000",
    "model.likelihood={kind: magic}",
    "model.likelihood.scale=0",
    "model.likelihood.scale=1e-300",
    "objective.weights={nll: 1}",
    "objective.weights={nll: -1, commitment: 1}",
    "objective.weights={nll: .nan, commitment: 1}",
    "objective.weights={}",
    "objective.weights={nll: 1, commitment: 1, cake: 1}",
    "model.bottlneck.num_codes=3",
    "output=",
    "output=[]",
    "output=null",
    "noequals",
    "=3",
    "a..b=3",
    "training=[1",
    "training.steps.deep=1",
    "training.steps=&a 3",
    "training=*a",
)
PRIOR_OVERRIDES = (
    "transformer.depth=1000000000",
    "transformer.dim=1000000000",
    "transformer.heads=1000000000",
    "transformer.head_dim=1000000000",
    "transformer.ff_mult=1e300",
    "transformer.ff_mult=.inf",
    "transformer.dropout=1",
    "transformer.positions=magic",
    "transformer={positions: rotary, head_dim: 3}",
    "condition=magic",
    "condition_dropout=1.5",
    "tokens=nowhere",
    "tokens=tokenizer.yaml",
    "tokens=.",
    "tokens=null",
    "training.batch_size=1000000000000",
)
PIPELINE_OVERRIDES = (
    "encode.splits=[train]",
    "encode.splits=[]",
    "encode.splits=[cake]",
    "encode.batch_size=0",
    "sample.options.temperature=0",
    "sample.options.temperature=1e-40",
    "sample.options.guidance_scale=1e300",
    "sample.options.top_p=1e-320",
    "sample.options.top_p=2",
    "sample.options.top_k=0",
    "sample.options.min_p=.nan",
    "sample.options={do_sample: false, top_k: 3}",
    "prior.condition_dropout=-1",
)


def values() -> Iterator[Case]:
    for key in (*INTEGERS, *REALS):
        for value in NUMBERS:
            yield Case("value", f"{key}={value}", ["train", "tokenizer.yaml", f"{key}={value}"])
    for text in OVERRIDES:
        yield Case("value", text, ["train", "tokenizer.yaml", *(text.split(" ") if "{" not in text else [text])])
    for text in PRIOR_OVERRIDES:
        tokens = [] if text.startswith("tokens") else ["tokens=done/tokens"]
        yield Case("value", f"prior {text}", ["train", "prior.yaml", *tokens, text])
    for text in PIPELINE_OVERRIDES:
        yield Case("value", f"pipeline {text}", ["run", "pipeline.yaml", "output=out", text])


# --- the command line --------------------------------------------------------------------------------------------


SAMPLE_OPTIONS = (
    "-n=0",
    "-n=-1",
    "-n=3000000000",
    "-n=many",
    "-n=99999999999999999999999",
    "--seed=-1",
    "--seed=99999999999999999999999",
    "--seed=1.5",
    "--temperature=0",
    "--temperature=nan",
    "--temperature=inf",
    "--temperature=1e-40",
    "--temperature=-1",
    "--top-k=0",
    "--top-k=-1",
    "--top-k=99999999999999999999999",
    "--top-p=0",
    "--top-p=2",
    "--top-p=nan",
    "--top-p=1e-320",
    "--min-p=nan",
    "--min-p=2",
    "--guidance-scale=1e300",
    "--guidance-scale=nan",
    "--guidance-scale=-inf",
    "--label=cake",
    "--label=99",
    "--label=-1",
    "--label=",
    "--batch-size=0",
    "--batch-size=99999999999999999999999",
    "--cake",
)


def command_line() -> Iterator[Case]:
    sample = ["sample", "done", "-o", "out"]
    for option in SAMPLE_OPTIONS:
        yield Case("command line", f"sample {option}", [*sample, option.replace("-n=", "--num-images=")])
    yield Case("command line", "sample --greedy --top-k 3", [*sample, "--greedy", "--top-k", "3"])
    for command in ("encode", "decode", "sample", "reconstruct", "inspect", "train", "run"):
        extra = [] if command in ("inspect", "train", "run") else ["-o", "out"]
        for folder in ("nowhere", ".", "tokenizer.yaml", "images", "x" * 300, "done/samples"):
            if (command, folder) not in (("train", "tokenizer.yaml"), ("inspect", "done/samples"), ("inspect", ".")):
                yield Case("command line", f"{command} {folder[:20]}", [command, folder, *extra])
        yield Case("command line", f"{command} alone", [command])
    for arguments in (
        ["dance"],
        ["encode", "done/tokenizer", "-o", "out", "--shards", "0"],
        ["encode", "done/tokenizer", "-o", "out", "--shards", "99999999999"],
        ["encode", "done/tokenizer", "-o", "out", "--split", "cake"],
        ["encode", "done/tokenizer", "-o", "out", "--data", "nowhere"],
        ["encode", "done/tokenizer", "-o", "out", "--data", "prior.yaml"],
        ["encode", "done/tokenizer", "-o", "out", "--data", "empty"],
        ["decode", "done/tokens", "-o", "out", "--split", "cake"],
        ["decode", "done/tokens", "-o", "out", "--max-images", "0"],
        ["decode", "done/tokens", "-o", "out", "--tokenizer", "done/prior"],
        ["reconstruct", "done/tokenizer", "-o", "out", "--split", "cake"],
        ["reconstruct", "done/tokenizer", "-o", "out", "-n", "1000000000"],
        ["inspect", "done/tokens", "--verify", "0"],
        ["inspect", "done/tokens", "--split", "cake"],
        ["inspect", "done/tokens", "-o", "images"],
        ["inspect", "done/tokens", "-o", "a.jpg"],
        ["inspect", "done/tokens", "-o", "a"],
        ["inspect", "done/tokens", "-o", "recipe.yaml/a.png"],
        ["schema", "cake"],
    ):
        yield Case("command line", " ".join(arguments), arguments)


# --- outputs -----------------------------------------------------------------------------------------------------


def outputs() -> Iterator[Case]:
    def places() -> None:
        write("file", "a file")
        write("photos/cat.png", "a cat")
        Path("loose").symlink_to("nowhere")

    commands = {
        "train": ["train", "tokenizer.yaml", "output={}"],
        "train prior": ["train", "prior.yaml", "tokens=done/tokens", "output={}"],
        "run": ["run", "pipeline.yaml", "output={}"],
        "encode": ["encode", "done/tokenizer", "-o", "{}"],
        "decode": ["decode", "done/tokens", "-o", "{}"],
        "sample": ["sample", "done", "-o", "{}"],
        "reconstruct": ["reconstruct", "done/tokenizer", "-o", "{}"],
    }
    targets = ("file", "file/below", "loose", "x" * 300, "photos", "/proc/nowhere", ".", "done/codes.png", "done")
    for name, arguments in commands.items():
        for target in targets:
            for more in ([], ["--overwrite"]):
                if name == "run" and target == "done":
                    continue
                given = [part.format(target) for part in arguments] + more
                yield Case("output", f"{name} -> {target[:20]} {' '.join(more)}", given, places)


# --- finished folders that were damaged --------------------------------------------------------------------------

NOTES = {
    "done/tokenizer/best/config.json": ["inspect", "done/tokenizer"],
    "done/prior/best/config.json": ["inspect", "done/prior"],
    "done/tokens/manifest.json": ["inspect", "done/tokens"],
    "done/tokens/token_spec.json": ["inspect", "done/tokens"],
    "done/image_pipeline/model_index.json": ["sample", "done/image_pipeline", "-o", "out", "-n", "2"],
    "done/image_pipeline/generation_config.json": ["sample", "done/image_pipeline", "-o", "out", "-n", "2"],
    "done/samples/request.json": ["run", "pipeline.yaml"],
    "done/samples/samples.json": ["run", "pipeline.yaml"],
    "done/reconstructions/reconstruction.json": ["run", "pipeline.yaml"],
    "done/report.json": ["run", "pipeline.yaml"],
    "done/seconds.json": ["run", "pipeline.yaml"],
    "done/tokenizer/recipe.yaml": ["encode", "done/tokenizer", "-o", "out"],
    "done/tokenizer/done.json": ["train", "tokenizer.yaml", "output=done/tokenizer"],
    "done/decoded/decoded.json": ["decode", "done/tokens", "-o", "done/decoded"],
    "done/.smalti.json": ["run", "pipeline.yaml"],
}
DAMAGES = {
    "empty": "",
    "a list": "[]",
    "half": '{"a":',
    "deep": "[" * 100_000,
    "null": "null",
    "binary": b"\xff\xfe" * 50,
    "empty mapping": "{}",
}
REPAIRABLE = ("samples", "reconstructions", "report", "seconds", "done.json", "decoded", ".smalti", "generation")
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


def damaged() -> Iterator[Case]:
    for path, arguments in NOTES.items():
        allowed = (0, 2) if any(word in path for word in REPAIRABLE) else (2,)
        for name, content in DAMAGES.items():
            prepare = lambda path=path, content=content: write(path, content)  # noqa: E731
            yield Case("damaged file", f"{path}: {name}", arguments, prepare, allowed)
        prepare = lambda path=path: (Path(path).unlink(missing_ok=True), Path(path).mkdir())  # noqa: E731
        yield Case("damaged file", f"{path}: a folder", arguments, prepare, (0, 2) if "best" in path else allowed)
    for part, edits in (("tokenizer", TOKENIZER_EDITS), ("prior", PRIOR_EDITS)):
        for key, found in edits.items():
            for value in found:
                prepare = edit_json(f"done/image_pipeline/{part}/config.json", key, value)
                arguments = ["sample", "done/image_pipeline", "-o", "out", "-n", "2"]
                yield Case("model config", f"{part} {key}: {str(value)[:20]}", arguments, prepare)
    for key, value in (("file", "../../../etc/passwd"), ("file", "/etc/passwd"), ("rows", 10**12), ("rows", -1)):
        prepare = edit_json("done/tokens/manifest.json", f"splits.train.shards.0.{key}", value)
        yield Case("tokens", f"manifest {key}: {value}", ["train", "prior.yaml", "tokens=done/tokens"], prepare)


def safetensors() -> Iterator[Case]:
    def header(content: bytes, length: int | None = None) -> bytes:
        return struct.pack("<Q", len(content) if length is None else length) + content

    huge = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
    contents = {
        "empty": b"",
        "four bytes": b"\0\0\0\0",
        "header beyond the file": header(b"{}", 2**60),
        "header of a gigabyte": header(b"{}", 2**30),
        "header that is no JSON": header(b"x" * 100),
        "header that is a list": header(b"[]"),
        "deep header": header(b"[" * 100_000),
        "huge tensor": header(huge),
        "no tensors": header(b"{}"),
        "a pickle": b"\x80\x04\x95cos\nsystem\n",
        "text": b"hello" * 100,
    }
    for name, content in contents.items():
        for path in ("done/image_pipeline/tokenizer", "done/image_pipeline/prior"):
            arguments = ["sample", "done/image_pipeline", "-o", "out", "-n", "2"]
            prepare = lambda content=content, path=path: write(f"{path}/model.safetensors", content)  # noqa: E731
            yield Case("safetensors", f"{Path(path).name} {name}", arguments, prepare)


# --- images and data sets ----------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its pixels do not have."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


BROKEN_IMAGES = {
    "empty": b"",
    "text": b"hello",
    "a bomb": png(60_000, 60_000),
    "the largest header": png(2**31 - 1, 2**31 - 1),
    "no size": png(0, 0),
    "cut short": png(32, 32)[:60],
    "too few pixels": png(32, 32),
    "a pickle": b"\x80\x04\x95",
}


def images() -> Iterator[Case]:
    from PIL import Image

    def folder(broken: bytes, good: int) -> Callable[[], None]:
        def prepare() -> None:
            for i in range(8):
                write(f"broken/train/{i}.png", broken)
            for i in range(good):
                Path("broken/train").mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (i, 0, 0)).save(f"broken/train/good-{i}.png")

        return prepare

    source = "data.source={kind: huggingface, path: imagefolder, data_dir: broken}"
    for name, content in BROKEN_IMAGES.items():
        yield Case("image", f"all {name}", ["train", "tokenizer.yaml", source], folder(content, 0))
        refused = ["train", "tokenizer.yaml", source, "data.on_unreadable=refuse"]
        yield Case("image", f"refused: {name}", refused, folder(content, 20))

    def validation_broken() -> None:
        for split, broken in (("train", False), ("validation", True)):
            for i in range(12):
                write(f"broken/{split}/{i}.png", b"broken" if broken else b"")
                if not broken:
                    Image.new("RGB", (32, 32), (i, 0, 0)).save(f"broken/{split}/{i}.png")

    yield Case("image", "all of validation broken", ["train", "tokenizer.yaml", source], validation_broken)

    def table(columns: dict[str, list[Any]]) -> Callable[[], None]:
        def prepare() -> None:
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.table(columns), "table.parquet")

        return prepare

    source = "data.source={kind: huggingface, path: parquet, data_files: table.parquet%s}"
    for name, columns, more in (
        ("addresses as images", {"image": ["https://nowhere.invalid/a.png"] * 20}, ""),
        ("numbers as images", {"image": list(range(20))}, ""),
        ("empty", {"image": []}, ""),
        ("no image column", {"cake": [b""] * 20}, ""),
        ("empty bytes", {"image": [b""] * 20}, ""),
        ("nulls", {"image": [None] * 20}, ""),
        ("lists as labels", {"image": [b"x"] * 20, "label": [[1]] * 20}, ", label: label"),
        ("no such key", {"image": [b"x"] * 20}, ", key: cake"),
        ("no such split", {"image": [b"x"] * 20}, ", splits: {test: cake}"),
    ):
        yield Case("data set", name, ["train", "tokenizer.yaml", source % more], table(columns))
    write_garbage = lambda: write("table.parquet", b"PAR1" + b"x" * 1000 + b"PAR1")  # noqa: E731
    yield Case("data set", "no parquet", ["train", "tokenizer.yaml", source % ""], write_garbage)
    for name, content in (("empty shard", b""), ("a text as shard", b"hello" * 100)):

        def prepare(content: bytes = content) -> None:
            for path in Path("done/tokens/data").glob("train*.parquet"):
                path.write_bytes(content)

        yield Case("tokens", name, ["train", "prior.yaml", "tokens=done/tokens"], prepare)
    gone = lambda: shutil.rmtree("done/tokens/data")  # noqa: E731
    yield Case("tokens", "no shards", ["train", "prior.yaml", "tokens=done/tokens"], gone)


def cases() -> list[Case]:
    return [
        case for family in (documents, values, command_line, outputs, damaged, safetensors, images) for case in family()
    ]


# --- running them ------------------------------------------------------------------------------------------------


def in_child(arguments: Arguments, folder: Path, errors: Path, prepare: Callable[[], object] = lambda: None) -> int:
    """The process id of a fork that runs `smalti` with these arguments in this folder."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        prepare()
        descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        from pipelines import cli

        sys.argv = ["smalti", *arguments]
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def run(case: Case, fixture: Path, limit: float) -> Outcome:
    with tempfile.TemporaryDirectory() as place:
        folder, errors = Path(place) / "work", Path(place) / "errors"
        shutil.copytree(fixture, folder, symlinks=True)
        began, peak, stopped = time.monotonic(), 0, False
        pid = in_child(case.arguments, folder, errors, case.prepare)
        while True:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                break
            peak = max(peak, resident(pid))
            if time.monotonic() - began > limit + 1 or peak > BYTES:
                stopped = True
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.005)
        seconds, peak = time.monotonic() - began, max(peak, usage.ru_maxrss * 1024)
        text = errors.read_text(errors="replace") if errors.exists() else ""
        return Outcome(case, None if stopped else os.waitstatus_to_exitcode(status), seconds, peak, text, limit)


def make_fixture(folder: Path) -> None:
    from pipelines.recipes.pipeline import SampleOptions

    number = "n" if "n" in SampleOptions.model_fields else "num_images"
    write(f"{folder}/tokenizer.yaml", TOKENIZER)
    write(f"{folder}/prior.yaml", PRIOR)
    write(f"{folder}/pipeline.yaml", PIPELINE % number)
    write(f"{folder}/recipe.yaml", TOKENIZER)
    (folder / "empty").mkdir()
    write(f"{folder}/images/a.txt", "no image")
    for arguments in FIXTURE_COMMANDS:
        errors = folder.parent / "errors"
        _, status = os.waitpid(in_child(arguments, folder, errors), 0)
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(f"the sound pipeline fails: {arguments}\n{errors.read_text()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="only cases whose kind and name contain this")
    parser.add_argument("-v", action="store_true", help="print every message")
    parser.add_argument("--patience", type=float, default=1.0, help="factor of the seconds that a case may take")
    options = parser.parse_args()
    import_everything()
    kinds: Counter[str] = Counter()
    bad: list[Outcome] = []
    with tempfile.TemporaryDirectory() as place:
        fixture = Path(place) / "fixture"
        fixture.mkdir()
        make_fixture(fixture)
        for case in cases():
            if options.k not in f"{case.kind}: {case.name}":
                continue
            outcome = run(case, fixture, SECONDS * options.patience)
            kinds[case.kind] += 1
            if options.v:
                print(f"[{outcome.exit_code}] {case.kind}: {case.name}\n    {outcome.errors.strip()[:400]}")
            if outcome.failures:
                bad.append(outcome)
                print(f"FAILED {case.kind}: {case.name}: {'; '.join(outcome.failures)}")
                print("    " + "\n    ".join(outcome.errors.strip().splitlines()[-4:]), flush=True)
    failed = Counter(outcome.case.kind for outcome in bad)
    for kind, count in kinds.items():
        print(f"{kind:16} {count - failed[kind]:4} of {count}")
    print(f"{'all':16} {kinds.total() - len(bad):4} of {kinds.total()}")
    sys.exit(bool(bad))


def import_everything() -> None:
    import datasets  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import pipelines.decode
    import pipelines.inspect
    import pipelines.recipes.data_arguments
    import pipelines.run  # noqa: F401


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PYTHONWARNINGS", "default")
    main()
