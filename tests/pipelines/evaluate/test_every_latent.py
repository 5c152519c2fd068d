"""What commands ask of a tokenizer, every bottleneck and every latent prior can answer."""

from types import SimpleNamespace

import pytest
import torch

from pipelines.data import DataConfig, open_images
from pipelines.data.preprocess import Preprocess
from pipelines.evaluate.chosen_images import choose_images
from pipelines.evaluate.image_likelihood import measure_images
from pipelines.evaluate.latent_window import latent_window
from pipelines.interpolate import InterpolationRequest, interpolated
from pipelines.models.checkpoint import save_tokenizer
from pipelines.sample import SampleRequest, sample
from pipelines.traverse import TraversalRequest, traversal
from tests.tokenizer.members import examples, of_latent_prior, small
from tokenizer import Autoencoder, AutoencoderConfig, BottleneckConfig, LatentPriorConfig
from tokenizer.latent_health import LatentHealth

PREPROCESS = Preprocess(mode="RGB", size=8)
IMAGES = open_images(
    DataConfig.model_validate({"source": {"kind": "shapes", "train": 8, "test": 6}, "preprocess": PREPROCESS}), "test"
)
MODELS = {name: {"bottleneck": config.model_dump()} for name, config in examples(BottleneckConfig).items()}
MODELS |= {
    f"gaussian, {name}": MODELS["gaussian"] | of_latent_prior(small(config))
    for name, config in examples(LatentPriorConfig).items()
}


def build(name) -> Autoencoder:
    torch.manual_seed(0)
    basis = {
        "image_size": 8,
        "channels": 3,
        "backbone": {"kind": "conv", "widths": [8, 16], "residual_blocks": 1, "residual_width": 8},
        "likelihood": {"kind": "normal"},
    }
    return Autoencoder(AutoencoderConfig.model_validate(basis | MODELS[name])).eval()


def finite(figures):
    return all(torch.tensor(list(row.figures.values())).isfinite().all() for row in figures)


@pytest.mark.parametrize("name", MODELS)
def test_a_tokenizer_is_measured_shown_and_sampled(name, tmp_path):
    model = build(name)
    alone = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True)
    found = measure_images(model, IMAGES, 6, 3, 4, tmp_path, alone)  # type: ignore[arg-type]
    assert len(found) == 6 and finite(found)
    assert ("nll" in found[0].figures) == model.is_random
    window = latent_window(model, IMAGES, range(6), 4)
    assert window.means is not None and len(window.means) == 6 and window.rows == list(range(6))
    assert isinstance(window.health, LatentHealth) == (model.num_codes is None)
    chosen = choose_images(["0", "1"], PREPROCESS, lambda: IMAGES)
    assert interpolated(model, chosen, InterpolationRequest(pairs=(("0", "1"),), steps=3)).shape == (1, 3, 3, 8, 8)
    if isinstance(window.health, LatentHealth):
        start = choose_images(["0"], PREPROCESS, lambda: IMAGES)
        for origin in (start, None):
            moved = traversal(model, window.health, origin, TraversalRequest(steps=3))
            assert moved.tiles.shape[1:] == (3, 3, 8, 8)
        save_tokenizer(tmp_path / "model", model, PREPROCESS)
        assert (sample(tmp_path / "model", tmp_path / "samples", SampleRequest(num_images=2)) / "samples.png").is_file()


def test_the_health_of_a_latent_of_labelled_images_is_that_under_the_priors_of_their_labels():
    model = build("gaussian, flow conditional=True")
    before = latent_window(model, IMAGES, range(6), 4).health
    with torch.no_grad():
        model.condition.embedding.weight[-1] += 10  # of images without a label
    after = latent_window(model, IMAGES, range(6), 4).health
    assert isinstance(before, LatentHealth) and isinstance(after, LatentHealth)
    assert before.levels[0].kl == after.levels[0].kl
