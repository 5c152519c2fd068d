"""The token dataset on disk: what is written is read, damage is named, `datasets` opens the folder."""

import json
import time
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.base.atomic_files import sha256_of
from pipelines.base.errors import UserError
from pipelines.data.preprocess import Preprocess
from pipelines.models.token_spec import Compute, Source, TokenizerIdentity, TokenSpec, smallest_dtype
from pipelines.tokens.card import write_card
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.manifest import Manifest, ManifestSplit, ShardEntry, digest_of
from pipelines.tokens.shards import finished, plan_shards, skipped_rows, token_table, write_shard

CLASSES = ("red circle", "blue square", "green star")


def make_spec(codes=512, rows=None, classes=CLASSES, text=True, grid=(2, 3, 2), shards=3):
    rows = rows or {"train": 50, "test": 11}
    identity = TokenizerIdentity(kind="vq", library_version="1", fingerprint="a" * 64, codebook_sha256="b" * 64)
    return TokenSpec(
        num_codes=codes,
        num_quantizers=grid[2],
        levels=(grid[:2],),
        dtype=smallest_dtype(codes),
        tokenizer=identity,
        preprocess=Preprocess(size=32),
        classes=classes,
        has_text=text,
        compute=Compute(torch="2.9", device="cpu", batch=64),
        source=Source(data={}, rows=rows),
        shards=dict.fromkeys(rows, shards),
    )


@dataclass
class Content:
    """The rows of one shard."""

    keys: list[str]
    tokens: np.ndarray
    labels: list[int] | None
    texts: list[str | None] | None

    def table(self, spec):
        return token_table(spec, self.keys, self.tokens, self.labels, self.texts)


def make_content(spec, rows, seed):
    draw = np.random.default_rng(seed)
    return Content(
        keys=[f"image-{seed}-{row}" for row in range(rows)],
        tokens=draw.integers(0, spec.num_codes, (rows, spec.tokens_per_image)).astype(spec.dtype),
        labels=draw.integers(0, len(spec.classes), rows).tolist() if spec.classes else None,
        texts=[None if row == 1 else f"picture {row}" for row in range(rows)] if spec.has_text else None,
    )


def write_tokens(folder, spec):
    """A whole token dataset of random tokens; returns them by split."""
    splits, contents = {}, {}
    for split, rows in spec.source.rows.items():
        shards = plan_shards(split, rows, spec.shards[split])
        contents[split] = [make_content(spec, len(shard.rows), seed) for seed, shard in enumerate(shards)]
        entries = []
        for shard, content in zip(shards, contents[split], strict=True):
            write_shard(folder, spec, shard, content.table(spec))
            path = folder / shard.file
            size = path.stat().st_size
            entries.append(ShardEntry(file=shard.file, rows=len(content.keys), bytes=size, sha256=sha256_of(path)))
        splits[split] = ManifestSplit(planned=rows, rows=rows, shards=tuple(entries))
    (folder / "token_spec.json").write_text(json.dumps(spec.model_dump(mode="json")))
    manifest = Manifest(spec_sha256=spec.sha256, digest=digest_of(spec.sha256, splits), splits=splits)
    write_card(folder, spec, manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest.model_dump(mode="json")))
    return contents


@pytest.mark.parametrize("rows", [1, 7, 100, 4097])
@pytest.mark.parametrize("num_shards", [1, 3, 64])
def test_shards_cover_every_row_once_and_evenly(rows, num_shards):
    shards = plan_shards("train", rows, num_shards)
    assert [row for shard in shards for row in shard.rows] == list(range(rows))
    sizes = [len(shard.rows) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@pytest.mark.parametrize("codes", [200, 512, 70000])
def test_what_was_written_is_read(tmp_path, codes):
    spec = make_spec(codes)
    contents = write_tokens(tmp_path, spec)
    split = TokenDataset.open(tmp_path).split("train")
    expected = np.concatenate([content.tokens for content in contents["train"]])
    assert split.tokens.dtype == np.dtype(spec.dtype)
    np.testing.assert_array_equal(split.tokens, expected)
    assert split.keys == [key for content in contents["train"] for key in content.keys]
    assert split.labels.tolist() == [label for content in contents["train"] for label in content.labels]
    assert split.texts[1:3] == [None, "picture 2"]
    np.testing.assert_array_equal(split.batch([20])["codes"][0], expected[20].reshape(spec.grid))


def test_a_batch_holds_the_rows_asked_for_in_that_order(tmp_path):
    write_tokens(tmp_path, make_spec())
    split = TokenDataset.open(tmp_path).split("train")
    wanted = torch.tensor([31, 4, 4, 49])
    batch = split.batch(wanted)
    assert batch["codes"].shape == (4, 2, 3, 2)
    assert batch["codes"].dtype == batch["label"].dtype == torch.int64
    for place, row in enumerate(wanted.tolist()):
        np.testing.assert_array_equal(batch["codes"][place].reshape(-1), split.tokens[row])
        assert batch["label"][place] == split.labels[row]


def test_a_set_without_classes_has_no_labels(tmp_path):
    write_tokens(tmp_path, make_spec(classes=None, text=False))
    split = TokenDataset.open(tmp_path).split("test")
    assert split.labels is None
    assert split.texts is None
    assert split.batch([0, 1]).keys() == {"codes"}


def test_datasets_opens_the_folder_with_its_splits_and_features(tmp_path):
    from datasets import ClassLabel, load_dataset

    spec = make_spec()
    contents = write_tokens(tmp_path / "tokens", spec)
    loaded = load_dataset(str(tmp_path / "tokens"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == spec.source.rows
    train = loaded["train"].with_format("numpy", dtype=np.uint16)
    np.testing.assert_array_equal(train[:]["tokens"], np.concatenate([c.tokens for c in contents["train"]]))
    assert isinstance(loaded["train"].features["label"], ClassLabel)
    assert tuple(loaded["train"].features["label"].names) == CLASSES


def test_the_card_carries_spec_and_digest(tmp_path):
    from huggingface_hub import DatasetCard

    spec = make_spec()
    write_tokens(tmp_path, spec)
    block = DatasetCard.load(tmp_path / "README.md").data["vq_tokens"]
    assert block["spec_sha256"] == spec.sha256
    assert block["digest"] == TokenDataset.open(tmp_path).manifest.digest


def test_equal_content_gives_equal_bytes(tmp_path):
    spec = make_spec()
    shard = plan_shards("train", 50, 3)[0]
    for name in ("a", "b"):
        write_shard(tmp_path / name, spec, shard, make_content(spec, len(shard.rows), 0).table(spec))
    assert sha256_of(tmp_path / "a" / shard.file) == sha256_of(tmp_path / "b" / shard.file)


def test_a_shard_is_finished_only_under_its_own_spec_and_plan(tmp_path):
    spec = make_spec()
    shard = plan_shards("train", 50, 3)[0]
    assert not finished(tmp_path, spec, shard)
    content = make_content(spec, len(shard.rows) - 1, 0)
    write_shard(tmp_path, spec, shard, content.table(spec), [("image-broken", "truncated")])
    assert finished(tmp_path, spec, shard)
    assert skipped_rows(tmp_path / shard.file) == [("image-broken", "truncated")]
    assert not finished(tmp_path, make_spec(codes=511), shard)
    write_shard(tmp_path, spec, shard, make_content(spec, len(shard.rows) - 1, 0).table(spec))
    assert not finished(tmp_path, spec, shard)


def test_an_incomplete_folder_is_refused(tmp_path):
    write_tokens(tmp_path, make_spec())
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"incomplete.*rerun `smalti encode"):
        TokenDataset.open(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no token_spec\.json"):
        TokenDataset.open(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        TokenDataset.open(tmp_path / "absent")


def test_a_missing_shard_is_named(tmp_path):
    write_tokens(tmp_path, make_spec())
    (tmp_path / "data/train-00001-of-00003.parquet").unlink()
    with pytest.raises(UserError, match=r"train-00001-of-00003.parquet: missing"):
        TokenDataset.open(tmp_path)


def test_a_truncated_shard_is_named(tmp_path):
    write_tokens(tmp_path, make_spec())
    path = tmp_path / "data/test-00000-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"test-00000-of-00003.parquet: found \d+ bytes"):
        TokenDataset.open(tmp_path)


def test_a_flipped_byte_is_found_in_reading_and_in_verification(tmp_path):
    write_tokens(tmp_path, make_spec())
    path = tmp_path / "data/train-00000-of-00003.parquet"
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    dataset = TokenDataset.open(tmp_path)
    with pytest.raises(UserError, match="sha256"):
        dataset.verify_files()
    content[60] ^= 0xFF
    column = pq.read_metadata(path).row_group(0).column(1)
    assert column.path_in_schema.startswith("tokens")
    content[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000-of-00003\.parquet"):
        _ = TokenDataset.open(tmp_path).split("train").tokens


def test_a_code_outside_the_codebook_is_refused(tmp_path):
    spec = make_spec(codes=300)
    write_tokens(tmp_path, spec)
    shard = plan_shards("train", 50, 3)[0]
    content = make_content(spec, len(shard.rows), 0)
    content.tokens[3, 2] = 300
    write_shard(tmp_path, spec, shard, content.table(spec))
    refresh_manifest(tmp_path, spec)
    with pytest.raises(UserError, match=r"holds code 300, expected 0 … 299"):
        _ = TokenDataset.open(tmp_path).split("train").tokens


def test_a_missing_split_names_those_there_are(tmp_path):
    write_tokens(tmp_path, make_spec())
    with pytest.raises(UserError, match="train, test"):
        TokenDataset.open(tmp_path).split("validation")


def test_a_shuffled_batch_of_4096_rows_takes_16_ms_or_less(tmp_path):
    write_tokens(tmp_path, make_spec(codes=1024, rows={"train": 8000}, classes=None, text=False, grid=(16, 16, 1)))
    split = TokenDataset.open(tmp_path).split("train")
    times = []
    for seed in range(8):
        rows = np.random.default_rng(seed).permutation(8000)[:4096]
        began = time.perf_counter()
        split.batch(rows)
        times.append(time.perf_counter() - began)
    assert min(times[1:]) < 0.016


def refresh_manifest(folder, spec):
    """The manifest of files as they stand now: for damage that hashes would otherwise reveal first."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            path = folder / shard["file"]
            shard |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
