"""Encoding files: sources that move, captions that are missing, secrets, folders that belong to others, damage."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines.base.errors import UserError
from pipelines.base.output_folder import OutputFolder
from pipelines.data import DataConfig
from pipelines.encode import encode
from pipelines.tokens import shard_encoder
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.folder import TOKEN_DATASET
from prior import CountBaselines

ROOT = Path(__file__).parents[2]
PREPROCESS = {"mode": "RGB", "size": 32}


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def write_parquet(path, seeds, texts):
    """Pictures of random pixels with captions."""
    rows = []
    for seed in seeds:
        picture(seed).save(path.with_suffix(".png"))
        rows.append({"bytes": path.with_suffix(".png").read_bytes(), "path": None})
    path.with_suffix(".png").unlink()
    pq.write_table(pa.table({"image": pa.array(rows), "caption": pa.array(texts, pa.string())}), path)


def parquet_data(path, tmp_path, **options):
    source = {"kind": "huggingface", "path": "parquet", "data_files": str(path), "text": "caption"}
    arguments = {"cache_dir": str(tmp_path / "cache")} | options
    return DataConfig.model_validate({"source": {**source, "arguments": arguments}, "preprocess": PREPROCESS})


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "pictures.parquet"
    write_parquet(path, range(30), [None, *(f"picture {i}" for i in range(1, 30))])
    return path


def encode_parquet(tokenizer, path, tmp_path, **options):
    return encode(tokenizer, parquet_data(path, tmp_path, **options), tmp_path / "tokens", splits=("train",))


def test_a_missing_caption_in_the_first_row_keeps_the_others(source, tiny_tokenizer, tmp_path):
    """Such a row once dropped the whole column."""
    rows = encode_parquet(tiny_tokenizer, source, tmp_path).rows
    split = TokenDataset.open(tmp_path / "tokens").split("train")
    assert len(split) == rows
    assert {None, "picture 7"} <= set(split.texts)


def test_a_source_that_has_moved_is_the_same_source(source, tiny_tokenizer, tmp_path):
    """Identity is by digest, never by path."""
    first = encode_parquet(tiny_tokenizer, source, tmp_path)
    moved = tmp_path / "elsewhere" / "renamed.parquet"
    moved.parent.mkdir()
    source.rename(moved)
    again = encode_parquet(tiny_tokenizer, moved, tmp_path)
    assert again.already_complete
    assert again.digest == first.digest


def test_other_images_under_the_same_path_are_another_source(source, tiny_tokenizer, tmp_path):
    encode_parquet(tiny_tokenizer, source, tmp_path)
    write_parquet(source, range(100, 130), [None] * 30)
    with pytest.raises(UserError, match=r"another spec \(source\.digests\.train"):
        encode_parquet(tiny_tokenizer, source, tmp_path)


def test_one_other_image_or_text_is_another_source(source, tiny_tokenizer, tmp_path):
    """The second row is none of the 16 evenly spread ones whose pixels are compared."""
    texts = [None, *(f"picture {i}" for i in range(1, 30))]
    encode_parquet(tiny_tokenizer, source, tmp_path)
    row = int(TokenDataset.open(tmp_path / "tokens").split("train").keys[1].rpartition("-")[2])
    for seeds, changed in (
        ([*range(row), 100, *range(row + 1, 30)], texts),
        (range(30), [*texts[:row], "another", *texts[row + 1 :]]),
    ):
        write_parquet(source, seeds, changed)
        with pytest.raises(UserError, match=r"another spec \(source\.digests\.train"):
            encode_parquet(tiny_tokenizer, source, tmp_path)


def test_one_other_file_is_another_source_and_a_moved_folder_is_not(tiny_tokenizer, tmp_path):
    def encode_folder(folder):
        arguments = {"cache_dir": str(tmp_path / "cache")}
        source = {"kind": "huggingface", "path": str(folder), "arguments": arguments}
        data = DataConfig.model_validate({"source": source, "preprocess": PREPROCESS})
        return encode(tiny_tokenizer, data, tmp_path / "tokens", splits=("train",))

    before, after = tmp_path / "png", tmp_path / "moved"
    (before / "train").mkdir(parents=True)
    for seed in range(60):
        picture(seed).save(before / "train" / f"{seed:02d}.bmp")
    encode_folder(before)
    shutil.copytree(before, after)
    assert encode_folder(after).already_complete
    changed = TokenDataset.open(tmp_path / "tokens").split("train").keys[1]  # none of the 16 rows that are decoded
    picture(100).save(after / changed)  # of the same size
    with pytest.raises(UserError, match=r"another spec \(source\.digests\.train"):
        encode_folder(after)


def test_secrets_of_the_source_are_written_nowhere(source, tiny_tokenizer, tmp_path):
    encode_parquet(tiny_tokenizer, source, tmp_path, token="hf_do_not_tell")
    files = [path for path in (tmp_path / "tokens").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"hf_do_not_tell" in path.read_bytes()]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_open_files_do_not_pile_up(tiny_tokenizer, tmp_path, monkeypatch):
    """1,600 PNGs and two workers once ran into `ulimit -n 1024`."""
    folder = tmp_path / "png" / "train"
    folder.mkdir(parents=True)
    for seed in range(150):
        picture(seed).save(folder / f"{seed}.png")
    source = {"kind": "huggingface", "path": str(tmp_path / "png"), "arguments": {"cache_dir": str(tmp_path / "cache")}}
    data = DataConfig.model_validate({"source": source, "preprocess": PREPROCESS, "workers": 2})
    opened, write = [], shard_encoder.write_shard

    def counted(*arguments):
        opened.append(len(os.listdir("/proc/self/fd")))
        return write(*arguments)

    monkeypatch.setattr(shard_encoder, "write_shard", counted)
    before = len(os.listdir("/proc/self/fd"))
    assert encode(tiny_tokenizer, data, tmp_path / "tokens", splits=("train",)).rows > 100
    assert max(opened) < before + 30


def test_baselines_are_counted_once_over_the_whole_train_split(tiny_tokens):
    dataset = TokenDataset.open(tiny_tokens)
    codes = dataset.split("train").batch(range(200))["codes"]
    fresh, held_out = CountBaselines(64).fit(codes), dataset.split("test").batch(range(40))["codes"]
    assert dataset.baselines().bits_per_token(held_out) == fresh.bits_per_token(held_out)
    assert sum(tensor.nbytes for tensor in load_file(tiny_tokens / "baselines.safetensors").values()) < 2**20


def test_baselines_of_other_tokens_are_refused(tiny_tokens, tmp_path):
    folder = shutil.copytree(tiny_tokens, tmp_path / "tokens")
    content = bytearray((folder / "baselines.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "baselines.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"baselines\.safetensors: sha256"):
        TokenDataset.open(folder).baselines()
    with pytest.raises(UserError, match=r"baselines\.safetensors: sha256"):
        TokenDataset.open(folder).verify_files()


def test_a_data_set_without_a_train_split_has_no_baselines(tiny_tokenizer, make_data, tmp_path):
    encode(tiny_tokenizer, make_data(test=5), tmp_path / "tokens", splits=("test",))
    with pytest.raises(UserError, match="no baselines"):
        TokenDataset.open(tmp_path / "tokens").baselines()


@pytest.mark.parametrize(
    "name", ["../../data/test-00000-of-00003.parquet", "/etc/passwd", "data/../x.parquet", "manifest.json"]
)
def test_a_manifest_names_no_file_outside_of_its_data(tiny_tokens, tmp_path, name):
    """A manifest that says `file: ../../…` is not followed."""
    folder = shutil.copytree(tiny_tokens, tmp_path / "tokens")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["test"]["shards"][0]["file"] = name
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: splits\.test\.shards\.0\.file"):
        TokenDataset.open(folder)


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", "[" * 5000, '{"format": 1, "format": 1}', "\x00\xff"])
@pytest.mark.parametrize("name", ["manifest.json", "token_spec.json"])
def test_a_damaged_document_is_named(tiny_tokens, tmp_path, name, content):
    folder = shutil.copytree(tiny_tokens, tmp_path / "tokens")
    (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        TokenDataset.open(folder)


@pytest.mark.parametrize("below", [False, True])
def test_an_output_that_is_a_file_is_refused_before_anything_is_loaded(make_data, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        encode(tmp_path / "no tokenizer", make_data(test=5), file / "below" if below else file)
    assert file.read_text() == "mine"


def test_overwriting_deletes_only_what_encode_writes(tiny_tokens, tiny_tokenizer, make_data, tmp_path):
    folder = shutil.copytree(tiny_tokens, tmp_path / "tokens")
    for name in ("thesis.tex", "data/notes.txt", "tokenizer/notes.txt"):
        (folder / name).write_text("years")
    encode(tiny_tokenizer, make_data(test=5), folder, splits=("test",), num_shards=1, overwrite=True)
    assert [path.name for path in (folder / "data").iterdir() if path.suffix == ".parquet"] == [
        "test-00000-of-00001.parquet"
    ]
    for name in ("thesis.tex", "data/notes.txt", "tokenizer/notes.txt"):
        assert (folder / name).read_text() == "years"
    assert not (folder / "baselines.safetensors").exists()


def test_a_wrong_request_deletes_nothing(tiny_tokens, tiny_tokenizer, make_data, tmp_path):
    """The old output must not be gone before the new request has been tried."""
    folder = shutil.copytree(tiny_tokens, tmp_path / "tokens")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UserError):
        encode(tmp_path / "no tokenizer", make_data(test=5), folder, overwrite=True)
    with pytest.raises(UserError):
        encode(tiny_tokenizer, make_data(test=5), folder, splits=("tset",), overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_encoding_again_with_the_tokenizer_inside(tiny_tokens, make_data, tmp_path):
    folder = shutil.copytree(tiny_tokens, tmp_path / "tokens")
    encode(folder / "tokenizer", make_data(test=5), folder, splits=("test",), overwrite=True)
    assert TokenDataset.open(folder).split("test").batch(range(5))["codes"].shape == (5, 8, 8, 1)


def test_two_commands_do_not_write_one_folder(tiny_tokenizer, make_data, tmp_path):
    folder = tmp_path / "tokens"
    with OutputFolder(folder, TOKEN_DATASET).begin(), pytest.raises(UserError, match="another smalti command"):
        encode(tiny_tokenizer, make_data(test=5), folder, splits=("test",))


def test_large_shards_are_read_in_bounded_chunks(tiny_tokenizer, make_data, tmp_path):
    encode(tiny_tokenizer, make_data(train=5000), tmp_path / "tokens", splits=("train",), num_shards=1)
    split = TokenDataset.open(tmp_path / "tokens").split("train")
    chunks = list(split.chunks())
    assert [len(chunk) for chunk in chunks] == [4096, 904]
    np.testing.assert_array_equal(np.concatenate(chunks), split.tokens)
    rows = np.array([0, 7, 4095, 4096, 4999])
    part = split.part(rows)
    np.testing.assert_array_equal(part.tokens, split.tokens[rows])
    assert part.keys == [split.keys[row] for row in rows]
    torch.testing.assert_close(part.codes(slice(None)), split.batch(rows)["codes"])


@pytest.mark.slow
def test_a_broken_image_of_one_process_is_the_message_of_all(tiny_tokenizer, tmp_path):
    """Also one in the shard of the second process."""
    folder = tmp_path / "png" / "train"
    folder.mkdir(parents=True)
    for row in range(60):
        picture(row).save(folder / f"{row:02d}.png")
    content = (folder / "45.png").read_bytes()
    (folder / "45.png").write_bytes(content[: len(content) // 2])
    source = {"kind": "huggingface", "path": str(tmp_path / "png"), "arguments": {"cache_dir": str(tmp_path / "cache")}}
    data = {"source": source, "preprocess": PREPROCESS, "on_unreadable": "refuse", "validation_fraction": 0}
    (tmp_path / "data.yaml").write_text(json.dumps({"data": {**data, "test_fraction": 0}}))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command = ["-m", "pipelines", "encode", str(tiny_tokenizer), "--data", str(tmp_path / "data.yaml")]
    options = ["--output", str(tmp_path / "tokens"), "--split", "train", "--shards", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [*launcher, *command, *options], env=environment, capture_output=True, text=True, timeout=120
    )
    assert found.returncode != 0
    assert found.stderr.count("smalti: data: 45.png") + found.stderr.count("smalti: data: train/45.png") == 1
    assert "exitcode  : 2" in found.stderr
    assert "Traceback" not in found.stderr.split("ChildFailedError")[0].split("torch/distributed")[0]
