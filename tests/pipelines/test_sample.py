"""Laws of sampling into a folder: an image is a function of index, seed and label, whatever happens around it."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.base.image_grids import to_uint8
from pipelines.models.checkpoint import LoadedPrior, load_tokenizer
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.models.image_seeds import image_seeds
from pipelines.reconstruct import reconstruct
from pipelines.sample import read_samples, sample
from pipelines.tokens.dataset import TokenDataset
from prior import PriorConfig, TokenPrior, TransformerConfig, Vocabulary


@pytest.fixture(scope="module")
def image_pipeline(tiny_tokens, tmp_path_factory):
    dataset = TokenDataset.open(tiny_tokens)
    spec = dataset.spec
    vocabulary = Vocabulary.of_labels_and_codes(spec.codebook_size, spec.grid, len(spec.classes))
    torch.manual_seed(0)
    tiny = TransformerConfig(dim=16, depth=1, heads=1, head_dim=16)
    prior = TokenPrior(PriorConfig(vocabulary=vocabulary, transformer=tiny)).eval()
    pipe = ImageGenerationPipeline(
        load_tokenizer(dataset.tokenizer_folder), LoadedPrior(prior, spec, spec.classes, tiny_tokens)
    )
    return pipe.save_pretrained(tmp_path_factory.mktemp("image_pipeline") / "g")


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def entries(folder):
    """What samples.json tells of each image; log-likelihoods to a hundredth, since sums round by batch size."""
    images = json.loads((folder / "samples.json").read_text())["images"]
    return [{**entry, "logprob": pytest.approx(entry["logprob"], abs=0.01)} for entry in images]


def test_the_folder_tells_all_of_its_images(image_pipeline, tmp_path):
    found = sample(image_pipeline, tmp_path / "s", labels=["red circle", 3], n=5, seed=4, top_k=8)
    pipe = ImageGenerationPipeline.from_pretrained(image_pipeline)
    out = pipe(label=[0, 3, 0, 3, 0], generator=4, top_k=8, output_type="pt")
    assert torch.equal(found.images, to_uint8(out.images))
    assert found.labels == [0, 3, 0, 3, 0]
    assert found.logprobs == pytest.approx(out.logprobs.sum(1).tolist(), abs=1e-3)
    told = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert told["request"]["options"]["top_k"] == 8
    assert [entry["seed"] for entry in told["images"]] == image_seeds(4, 5)
    assert told["images"][0]["file"] == "images/00000_red-circle.png"
    with Image.open(tmp_path / "s" / "samples.png") as grid:
        assert grid.width > 2 * 32 and grid.height > 3 * 32


def test_without_labels_every_class_has_its_turn(image_pipeline, tmp_path):
    found = sample(image_pipeline, tmp_path / "s", n=30)
    assert found.labels == [i % len(found.classes) for i in range(30)]


def test_rerunning_fills_gaps_and_more_images_are_added(image_pipeline, tmp_path):
    sample(image_pipeline, tmp_path / "whole", n=6)
    sample(image_pipeline, tmp_path / "grown", n=3, batch_size=2)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "grown" / "images").iterdir()}
    first, second, third = sorted(kept)
    first.unlink()
    second.write_bytes(second.read_bytes()[:50])  # torn by a crash
    (tmp_path / "grown" / "samples.json").unlink()
    sample(image_pipeline, tmp_path / "grown", n=6, batch_size=1)
    assert third.stat().st_mtime_ns == kept[third]
    grown, whole = read_samples(tmp_path / "grown"), read_samples(tmp_path / "whole")
    assert torch.equal(grown.images, whole.images)
    assert files(tmp_path / "grown").keys() == files(tmp_path / "whole").keys()
    assert json.loads((tmp_path / "grown" / "samples.json").read_text())["images"] == entries(tmp_path / "whole")


def test_a_finished_folder_is_left_alone(image_pipeline, tmp_path, capfd):
    sample(image_pipeline, tmp_path / "s", n=2)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")}
    sample(image_pipeline, tmp_path / "s", n=2)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")} == before
    assert "already sampled" in " ".join(capfd.readouterr().err.split())


def test_other_options_are_refused_until_overwriting(image_pipeline, tmp_path):
    sample(image_pipeline, tmp_path / "s", n=2, seed=0)
    with pytest.raises(UserError, match=r"holds other samples \(seed: there 0, asked 1\)"):
        sample(image_pipeline, tmp_path / "s", n=2, seed=1)
    sample(image_pipeline, tmp_path / "s", n=1, seed=1, overwrite=True)
    assert len(files(tmp_path / "s")) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").touch()
    with pytest.raises(UserError, match="was not written by"):
        sample(image_pipeline, tmp_path / "mine", n=1)


def test_samples_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match=r"samples\.json: cannot be read"):
        read_samples(tmp_path)


TWO = """
import json, sys
from pathlib import Path
from pipelines.data import DataConfig
from pipelines.reconstruct import reconstruct
from pipelines.sample import sample
image_pipeline, output, data = sys.argv[1:]
sample(image_pipeline, Path(output) / "s", n=5, batch_size=2)
reconstruct(image_pipeline, DataConfig.model_validate_json(data), Path(output) / "r", n=4)
"""


def test_two_processes_write_what_one_writes(image_pipeline, make_data, tmp_path):
    data = make_data(train=8, validation=8, test=21)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", TWO, str(image_pipeline), str(tmp_path / "two"), data.model_dump_json()]
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    sample(image_pipeline, tmp_path / "one" / "s", n=5)
    reconstruct(image_pipeline, data, tmp_path / "one" / "r", n=4)
    assert torch.equal(read_samples(tmp_path / "two" / "s").images, read_samples(tmp_path / "one" / "s").images)
    one, two = (json.loads((tmp_path / name / "r" / "reconstruction.json").read_text()) for name in ("one", "two"))
    assert two == {**one, "psnr": pytest.approx(one["psnr"], rel=1e-6), "ssim": pytest.approx(one["ssim"], rel=1e-6)}
