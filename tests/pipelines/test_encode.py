"""Encoding: tokens depend on images and tokenizer, not on the batch size, the processes or the crashes."""

import json
import multiprocessing
import signal
import socket
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.base.errors import UserError
from pipelines.data import Unreadable, open_images
from pipelines.data.preprocess import Preprocess
from pipelines.encode import encode
from pipelines.inspect import inspect
from pipelines.models.checkpoint import load_tokenizer
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.encoding_spec import compute_batch
from tests.pipelines.conftest import read_example
from tests.tokenizer.members import examples
from tokenizer.bottlenecks import BottleneckConfig, Quantizer, build_bottleneck

ROWS = {"train": 1000, "validation": 70, "test": 130}
SHARDS = 20


def digest(folder):
    return TokenDataset.open(folder).manifest.digest


@pytest.fixture(scope="module")
def reference(tiny_tokenizer, make_data, tmp_path_factory):
    """Encoded by one process without interruption."""
    folder = tmp_path_factory.mktemp("reference") / "tokens"
    encode(tiny_tokenizer, make_data(**ROWS), folder, num_shards=SHARDS)
    return folder


def test_rows_keep_the_order_keys_and_labels_of_the_source(reference, make_data):
    dataset = TokenDataset.open(reference)
    for split, rows in ROWS.items():
        images, tokens = open_images(make_data(**ROWS), split), dataset.split(split)
        assert len(tokens) == rows
        for row in (0, 1, rows // 2, rows - 1):
            example = read_example(images, row)
            assert tokens.labels is not None and tokens.texts is not None
            stored = tokens.keys[row], tokens.labels[row], tokens.texts[row]
            assert stored == (example.key, example.label, example.text)
        assert list(dataset.spec.classes) == images.classes


def test_tokens_are_the_codes_of_the_images(reference, tiny_tokenizer, make_data):
    model = load_tokenizer(tiny_tokenizer).model
    images, tokens = open_images(make_data(**ROWS), "test"), TokenDataset.open(reference).split("test")
    with torch.inference_mode():
        codes = model.encode(torch.stack([read_example(images, row).image for row in range(64)])).codes
    match = (codes.numpy() == tokens.batch(range(64))["codes"].numpy()).mean()
    assert match > 0.999  # another kernel shape may flip a near-tie


QUANTIZERS = {
    name: config.model_dump()
    for name, config in examples(BottleneckConfig).items()
    if name in ("vq num_quantizers=3", config.kind) and build_bottleneck(config, (4, 4)).num_codes is not None
}


@pytest.mark.parametrize("bottleneck", QUANTIZERS.values(), ids=QUANTIZERS)
def test_every_discrete_bottleneck_goes_to_tokens_and_back(bottleneck, make_tokenizer, make_data, tmp_path):
    folder, data = make_tokenizer(tmp_path / "tokenizer", bottleneck), make_data(train=64)
    encode(folder, data, tmp_path / "tokens", splits=("train",))
    model, images = load_tokenizer(folder).model, open_images(data, "train")
    codes = TokenDataset.open(tmp_path / "tokens").split("train").batch(range(64))["codes"]
    with torch.inference_mode():
        expected = model.encode(torch.stack([read_example(images, row).image for row in range(64)]))
        assert isinstance(model.bottleneck, Quantizer)
        torch.testing.assert_close(model.bottleneck.codes_to_latents(codes), expected.z)
    torch.testing.assert_close(codes, expected.codes)
    assert inspect(tmp_path / "tokens", verify_rows=64).verified.match_rate == 1


def test_batch_sizes_1_and_64_give_the_same_tokens(reference, tiny_tokenizer, make_data, tmp_path):
    one, many = (
        encode(tiny_tokenizer, make_data(**ROWS), tmp_path / str(size), num_shards=SHARDS, batch_size=size)
        for size in (1, 64)
    )
    assert one.digest == many.digest == digest(reference)
    a, b = (TokenDataset.open(tmp_path / str(size)).split("train").tokens for size in (1, 64))
    assert a.size == 1000 * 64
    np.testing.assert_array_equal(a, b)


def test_an_image_has_the_same_tokens_beside_other_images(reference, tiny_tokenizer, make_data, tmp_path):
    """Shards cut the rows into other passes here; the network's shape is the same."""
    encode(tiny_tokenizer, make_data(**ROWS), tmp_path / "other", num_shards=3)
    a, b = (TokenDataset.open(folder).split("train").tokens for folder in (reference, tmp_path / "other"))
    np.testing.assert_array_equal(a, b)


def test_another_data_loading_gives_the_same_tokens(reference, tiny_tokenizer, make_data, tmp_path):
    data = make_data(**ROWS).model_copy(update={"workers": 1})
    encode(tiny_tokenizer, data, tmp_path / "tokens", splits=("validation", "test"), num_shards=SHARDS)
    for split in ("validation", "test"):
        a, b = (TokenDataset.open(folder).split(split).tokens for folder in (reference, tmp_path / "tokens"))
        np.testing.assert_array_equal(a, b)


def test_the_tokenizer_inside_is_the_one_that_encoded(reference, tiny_tokenizer):
    dataset = TokenDataset.open(reference)
    inside = load_tokenizer(dataset.tokenizer_folder)
    assert inside.fingerprint == load_tokenizer(tiny_tokenizer).fingerprint == dataset.spec.tokenizer.fingerprint


def test_the_manifest_has_figures_of_each_split(reference):
    dataset = TokenDataset.open(reference)
    for split, rows in ROWS.items():
        stats = dataset.manifest.splits[split].stats
        counts = np.bincount(dataset.split(split).tokens.reshape(-1), minlength=64)
        assert stats.codes_used == (counts > 0).sum()
        assert stats.unigram_bits == pytest.approx(np.log2(stats.perplexity), rel=1e-4)
        assert stats.psnr_images == min(rows, 256)


def test_a_finished_encoding_says_so_and_changes_nothing(reference, tiny_tokenizer, make_data, capsys):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    again = encode(tiny_tokenizer, make_data(**ROWS), reference, num_shards=SHARDS)
    assert again.already_complete
    assert "already complete" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*")} == before


def test_a_lost_shard_and_a_damaged_one_are_written_again(tiny_tokenizer, make_data, tmp_path):
    data = make_data(train=300, validation=1, test=1)
    first = encode(tiny_tokenizer, data, tmp_path, splits=("train",), num_shards=5)
    (tmp_path / "data/train-00001-of-00005.parquet").unlink()
    damaged, kept = (tmp_path / f"data/train-0000{i}-of-00005.parquet" for i in (2, 3))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    written = kept.stat().st_mtime_ns
    leftover = tmp_path / "data/.train-00004-of-00005.77.partial.parquet"
    leftover.write_bytes(b"half")
    again = encode(tiny_tokenizer, data, tmp_path, splits=("train",), num_shards=5)
    assert not again.already_complete
    assert again.digest == first.digest
    assert kept.stat().st_mtime_ns == written
    assert not leftover.exists()


def test_another_spec_is_refused_unless_overwritten(tiny_tokenizer, make_tokenizer, make_data, tmp_path):
    output, data = tmp_path / "tokens", make_data(train=70, validation=1, test=1)
    encode(tiny_tokenizer, data, output, splits=("train",), num_shards=2)
    other = make_tokenizer(tmp_path / "fsq", {"kind": "fsq", "levels": (8, 5, 5)})
    with pytest.raises(UserError, match=r"another spec \(num_codes: found 64, expected 200"):
        encode(other, data, output, splits=("train",))
    encode(other, data, output, splits=("train",), overwrite=True)
    assert TokenDataset.open(output).spec.num_codes == 200
    assert [path.name for path in (output / "data").iterdir()] == ["train-00000-of-00001.parquet"]


def test_a_folder_of_something_else_is_never_touched(tiny_tokenizer, make_data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="was not written by `smalti encode`"):
        encode(tiny_tokenizer, make_data(train=5), tmp_path, splits=("train",), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


class WithHoles:
    """A split in which some images cannot be read."""

    def __init__(self, images, holes):
        self.images, self.holes = images, holes
        self.classes, self.has_text, self.provenance = images.classes, images.has_text, images.provenance
        self.image_bytes = images.image_bytes
        self.preprocess = images.preprocess

    def __len__(self):
        return len(self.images)

    def key(self, row):
        return self.images.key(row)

    def content_digest(self):
        return self.images.content_digest()

    def read_batch(self, rows, keep=True):
        batch = self.images.read_batch([row for row in rows if row not in self.holes])
        unreadable = [
            (place, Unreadable(self.key(row), "truncated")) for place, row in enumerate(rows) if row in self.holes
        ]
        return replace(batch, unreadable=unreadable)

    read_pixels = read_batch


@pytest.fixture
def holes(monkeypatch):
    monkeypatch.setattr(
        "pipelines.tokens.encoding_spec.open_images", lambda *a: WithHoles(open_images(*a), {0, 70, 71, 129})
    )


def test_unreadable_images_are_left_out_and_named(holes, reference, tiny_tokenizer, make_data, tmp_path):
    found = encode(tiny_tokenizer, make_data(**ROWS), tmp_path, splits=("test",), num_shards=4)
    assert (found.rows, found.skipped) == (126, 4)
    entry = TokenDataset.open(tmp_path).manifest.splits["test"]
    images = open_images(make_data(**ROWS), "test")
    assert [skipped.key for skipped in entry.skipped] == [images.key(row) for row in (0, 70, 71, 129)]
    assert {skipped.reason for skipped in entry.skipped} == {"truncated"}
    whole, kept = TokenDataset.open(reference).split("test"), TokenDataset.open(tmp_path).split("test")
    np.testing.assert_array_equal(kept.tokens, np.delete(whole.tokens, [0, 70, 71, 129], axis=0))
    assert encode(tiny_tokenizer, make_data(**ROWS), tmp_path, splits=("test",), num_shards=4).already_complete


def test_an_unreadable_image_is_refused_by_name_where_the_recipe_says_so(holes, tiny_tokenizer, make_data, tmp_path):
    data = make_data(**ROWS).model_copy(update={"on_unreadable": "refuse"})
    with pytest.raises(UserError, match="truncated"):
        encode(tiny_tokenizer, data, tmp_path, splits=("test",))


def test_a_continuous_tokenizer_is_refused(make_tokenizer, make_data, tmp_path):
    folder = make_tokenizer(tmp_path / "vae", {"kind": "gaussian", "dim": 4})
    with pytest.raises(UserError, match="'gaussian', which has no codes"):
        encode(folder, make_data(train=5), tmp_path / "tokens", splits=("train",))


def test_another_preprocessing_than_the_tokenizers_is_refused(tiny_tokenizer, make_data, tmp_path):
    data = make_data(train=5).model_copy(update={"preprocess": Preprocess(size=32, crop="pad")})
    with pytest.raises(UserError, match=r"data\.preprocess"):
        encode(tiny_tokenizer, data, tmp_path, splits=("train",))


def test_a_split_that_is_none_is_named(tiny_tokenizer, make_data, tmp_path):
    with pytest.raises(UserError, match="found tset, expected train, validation, test"):
        encode(tiny_tokenizer, make_data(train=5), tmp_path, splits=("train", "tset"))


def test_a_pass_is_never_empty_nor_larger_than_its_budget():
    for size in (8, 28, 64, 128, 256, 512, 2048):
        batch = compute_batch(size, torch.device("cpu"))
        assert 1 <= batch <= 128
        assert batch == 1 or batch * size**2 <= 64**3


SCRIPT = """
import os
os.environ.update(environment)
from pipelines.data import DataConfig
from pipelines.encode import encode
encode(tokenizer, DataConfig.model_validate_json(data), output, num_shards=shards)
"""


def start_processes(tokenizer, data, output, world):
    """Processes of a launcher's environment, forked from a server that has imported everything once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipelines.encode"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    names = {"tokenizer": str(tokenizer), "data": data.model_dump_json(), "output": str(output), "shards": SHARDS}
    processes = []
    for rank in map(str, range(world)):
        environment = {**shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        processes.append(context.Process(target=exec, args=(SCRIPT, {**names, "environment": environment})))
        processes[-1].start()
    return processes


@pytest.mark.slow
def test_two_processes_write_what_one_writes(reference, tiny_tokenizer, make_data, tmp_path):
    for process in start_processes(tiny_tokenizer, make_data(**ROWS), tmp_path / "tokens", 2):
        process.join(timeout=120)
        assert process.exitcode == 0
    assert digest(tmp_path / "tokens") == digest(reference)


def test_killed_in_the_middle_and_continued_is_as_never_killed(reference, tiny_tokenizer, make_data, tmp_path):
    output, data = tmp_path / "tokens", make_data(**ROWS)
    (process,) = start_processes(tiny_tokenizer, data, output, 1)
    deadline = time.monotonic() + 120
    while not list(output.glob("data/[!.]*.parquet")) and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = list(output.glob("data/[!.]*.parquet"))
    assert 0 < len(done) < 3 * SHARDS
    assert not (output / "manifest.json").exists()
    with pytest.raises(UserError, match="incomplete"):
        TokenDataset.open(output)
    written = {path: path.stat().st_mtime_ns for path in done}
    assert encode(tiny_tokenizer, data, output, num_shards=SHARDS).digest == digest(reference)
    assert {path: path.stat().st_mtime_ns for path in done} == written
    assert json.loads((output / "manifest.json").read_text())["splits"]["train"]["rows"] == 1000
