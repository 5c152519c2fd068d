"""Reconstructing measures a whole split, for discrete and continuous tokenizers alike."""

import json

import pytest
import torch
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.data import open_images
from pipelines.evaluate.fidelity import ssim
from pipelines.models.checkpoint import load_tokenizer
from pipelines.reconstruct import ReconstructionRequest, draw_pairs, reconstruct
from tests.pipelines.conftest import read_example
from tests.tokenizer.members import members
from tokenizer import BottleneckConfig, psnr


@pytest.fixture
def data(make_data):
    return make_data(train=64, test=21)


@pytest.mark.parametrize("bottleneck", [{"kind": "vq", "num_codes": 32, "dim": 4}, {"kind": "gaussian", "dim": 4}])
def test_figures_are_means_over_every_image_of_the_split(make_tokenizer, data, tmp_path, bottleneck):
    folder = make_tokenizer(tmp_path / "t", bottleneck)
    found = reconstruct(folder, data, tmp_path / "out", ReconstructionRequest(num_pairs=10, batch_size=8))
    images = open_images(data, "test")
    original = images.read_batch(range(21)).image
    with torch.inference_mode():
        rebuilt = load_tokenizer(folder).model.reconstruct(original).clamp(0, 1)
    assert found.images == 21
    assert found.psnr == pytest.approx(psnr(rebuilt, original / 255).mean().item(), abs=1e-3)
    assert found.ssim == pytest.approx(ssim(rebuilt, original / 255).mean().item(), abs=1e-4)


def test_the_figure_of_a_continuous_tokenizer_is_a_bound_that_no_batch_size_changes(make_tokenizer, data, tmp_path):
    folder = make_tokenizer(tmp_path / "t", {"kind": "gaussian", "dim": 4})
    found = [
        reconstruct(folder, data, tmp_path / str(size), ReconstructionRequest(batch_size=size)).negative_elbo
        for size in (21, 4)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    model, images = load_tokenizer(folder).model, open_images(data, "test").read_batch(range(21)).image
    with torch.no_grad():
        terms = model(images, 0, 64).terms  # 64 draws of each posterior
    assert found[0] == pytest.approx((terms["nll"] + terms["kl"]).mean().item(), rel=0.02)
    assert reconstruct(make_tokenizer(tmp_path / "vq", {"kind": "vq"}), data, tmp_path / "out").negative_elbo is None


@pytest.mark.parametrize("kind", [member.model_fields["kind"].default for member in members(BottleneckConfig)])
def test_every_bottleneck_can_be_reconstructed(make_tokenizer, data, tmp_path, kind):
    folder = make_tokenizer(tmp_path / "t", {"kind": kind})
    found = reconstruct(folder, data, tmp_path / "out", ReconstructionRequest(max_images=4))
    assert found.images == 4
    assert (found.negative_elbo is not None) == load_tokenizer(folder).model.is_random


def test_originals_stand_above_their_reconstructions(tiny_tokenizer, data, tmp_path):
    reconstruct(tiny_tokenizer, data, tmp_path, ReconstructionRequest(num_pairs=8))
    original = read_example(open_images(data, "test"), 0).image
    with Image.open(tmp_path / "reconstructions.png") as grid:
        pixels = torch.frombuffer(bytearray(grid.convert("RGB").tobytes()), dtype=torch.uint8)
        pixels = pixels.view(grid.height, grid.width, 3).permute(2, 0, 1)
    scale = 4
    wanted = original.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    windows = pixels[:, 3 : 3 + 32 * scale].unfold(2, 32 * scale, 1)  # every place along the first row
    assert any(torch.equal(windows[:, :, place], wanted) for place in range(120))


def test_a_finished_one_is_left_alone_and_a_foreign_one_refused(tiny_tokenizer, make_tokenizer, data, tmp_path):
    first = reconstruct(tiny_tokenizer, data, tmp_path / "out", ReconstructionRequest(max_images=5))
    assert first.images == 5
    stamp = (tmp_path / "out" / "reconstructions.png").stat().st_mtime_ns
    assert reconstruct(tiny_tokenizer, data, tmp_path / "out", ReconstructionRequest(max_images=5)) == first
    assert (tmp_path / "out" / "reconstructions.png").stat().st_mtime_ns == stamp
    other = make_tokenizer(tmp_path / "t", {"kind": "fsq", "levels": (4, 4)})
    with pytest.raises(UserError, match="another tokenizer or split"):
        reconstruct(other, data, tmp_path / "out", ReconstructionRequest(max_images=5))
    assert reconstruct(other, data, tmp_path / "out", ReconstructionRequest(max_images=5), overwrite=True) != first


def test_brackets_in_a_path_are_shown_as_they_are(tiny_tokenizer, data, tmp_path, capsys):
    for word in ("PSNR", "already reconstructed"):
        reconstruct(tiny_tokenizer, data, tmp_path / "[red]a[/b]", ReconstructionRequest(max_images=2))
        assert f"{tmp_path}/[red]a[/b]: {word}" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 7, 12, 16])
def test_as_many_pairs_are_shown_as_were_asked_for(tmp_path, count):
    pairs = [(torch.full((1, 8, 8), i + 1, dtype=torch.uint8), torch.full((1, 8, 8), 100 + i)) for i in range(count)]
    pairs = [(image, rebuilt.to(torch.uint8)) for image, rebuilt in pairs]
    with Image.open(draw_pairs(tmp_path / "pairs.png", pairs)) as grid:
        levels = set(grid.convert("L").tobytes())
    assert {int(image[0, 0, 0]) for pair in pairs for image in pair} <= levels


def test_a_foreign_folder_is_not_written_into(tiny_tokenizer, data, tmp_path):
    (tmp_path / "reconstruction.json").write_text("mine")
    for overwrite in (False, True, True):
        with pytest.raises(UserError, match="was not written by `smalti reconstruct`"):
            reconstruct(tiny_tokenizer, data, tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["reconstruction.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"request": {}, "fidelity": []}', "[" * 100_000])
def test_damaged_figures_are_measured_again(tiny_tokenizer, data, tmp_path, content):
    request = ReconstructionRequest(max_images=3)
    first = reconstruct(tiny_tokenizer, data, tmp_path / "out", request)
    (tmp_path / "out" / "reconstruction.json").write_text(content)
    assert reconstruct(tiny_tokenizer, data, tmp_path / "out", request, replace_others=True) == first


def test_secrets_of_the_data_are_not_written(tiny_tokenizer, data, tmp_path):
    reconstruct(tiny_tokenizer, data, tmp_path / "out", ReconstructionRequest(max_images=3))
    assert set(json.loads((tmp_path / "out" / "reconstruction.json").read_text())["request"]) == {
        "weights",
        "fingerprint",
        "images",
        "split",
        "max_images",
        "num_pairs",
    }
