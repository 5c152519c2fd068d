"""A tokenizer small enough to be made in a test, and tokens written by it; both are shared, so do not write there."""

from pathlib import Path

import pytest
import torch
import yaml

from pipelines.data import DataConfig, Example, open_images
from pipelines.data.dataset import ImageDataset
from pipelines.data.preprocess import Preprocess
from pipelines.encode import encode
from pipelines.models.checkpoint import LoadedPrior, load_tokenizer, save_tokenizer
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.tokens.dataset import TokenDataset
from prior import PriorConfig, TokenPrior, TransformerConfig, Vocabulary
from tests.pipelines.tiny_recipes import RECIPES
from tokenizer import Autoencoder, AutoencoderConfig

BACKBONE = {"kind": "conv", "widths": (8, 16), "residual_blocks": 1, "residual_width": 8}


def shapes_data(**source) -> DataConfig:
    return DataConfig.model_validate(
        {"source": {"kind": "shapes", **source}, "preprocess": {"mode": "RGB", "size": 32}, "on_unreadable": "skip"}
    )


def read_example(dataset: ImageDataset, row: int) -> Example:
    """A row that must be readable."""
    found = dataset.read(row)
    assert isinstance(found, Example), found
    return found


def write_tokenizer(folder: Path, bottleneck: dict, seed: int = 0) -> Path:
    """An untrained tokenizer for 32 x 32 shapes whose codebook has seen a batch, so that many codes are used."""
    torch.manual_seed(seed)
    model = Autoencoder(
        AutoencoderConfig.model_validate(
            {
                "image_size": 32,
                "channels": 3,
                "backbone": BACKBONE,
                "bottleneck": bottleneck,
                "likelihood": {"kind": "normal"},
            }
        )
    )
    images = open_images(shapes_data(train=64), "train")
    model.train()(torch.stack([read_example(images, row).image for row in range(64)]))
    save_tokenizer(folder, model, Preprocess(mode="RGB", size=32))
    return folder


def write_vae(folder: Path, seed: int = 0, classes: tuple[str, ...] | None = None, **model) -> Path:
    """An untrained VAE of five latent units for black and white shapes of 16 x 16 pixels (see `grey_data`), unless
    `model` says otherwise. Its posteriors differ between images, as if it had been trained.
    """
    torch.manual_seed(seed)
    basis = {
        "image_size": 16,
        "channels": 1,
        "backbone": {"kind": "mlp", "widths": [12]},
        "bottleneck": {"kind": "gaussian", "dim": 5},
        "likelihood": {"kind": "bernoulli"},
    }
    built = Autoencoder(AutoencoderConfig.model_validate(basis | model))
    with torch.no_grad():
        for parameter in built.encoder.parameters():
            parameter.mul_(2)
    mode = "L" if built.config.channels == 1 else "RGB"
    save_tokenizer(folder, built, Preprocess(mode=mode, size=built.config.image_size), classes)
    return folder


def write_conditional_vae(folder: Path, classes: tuple[str, ...], dropout: float = 0.0) -> Path:
    """`write_vae` with a condition on its classes."""
    condition = {"kind": "film", "num_classes": len(classes), "dim": 4, "dropout": dropout}
    return write_vae(folder, classes=classes, condition=condition)


def grey_data(binarize: str | None = "threshold", **source) -> DataConfig:
    content = {"source": {"kind": "shapes", **source}, "preprocess": {"mode": "L", "size": 16}}
    return DataConfig.model_validate(content | ({"binarize": {"method": binarize}} if binarize else {}))


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="session")
def make_tokenizer():
    return write_tokenizer


@pytest.fixture(scope="session")
def make_data():
    return shapes_data


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Path:
    """VQ with 64 codes of 8 channels on an 8 x 8 grid."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), {"kind": "vq", "num_codes": 64, "dim": 8})


@pytest.fixture(scope="session")
def tiny_tokens(tiny_tokenizer, tmp_path_factory) -> Path:
    """The tokens of 200 training, 20 validation and 40 test images."""
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    encode(tiny_tokenizer, shapes_data(train=200, validation=20, test=40), folder, num_shards=3)
    return folder


@pytest.fixture(scope="session")
def image_pipeline(tiny_tokens, tmp_path_factory) -> Path:
    """The tokenizer of `tiny_tokens` and an untrained prior by label."""
    dataset = TokenDataset.open(tiny_tokens)
    spec = dataset.spec
    vocabulary = Vocabulary.of_labels_and_codes(spec.num_codes, spec.grid, len(spec.classes or ()))
    torch.manual_seed(0)
    tiny = TransformerConfig(dim=16, depth=1, heads=1, head_dim=16)
    prior = TokenPrior(PriorConfig(vocabulary=vocabulary, transformer=tiny)).eval()
    pipe = ImageGenerationPipeline(
        load_tokenizer(dataset.tokenizer_folder), LoadedPrior(prior, spec, spec.classes, tiny_tokens)
    )
    return pipe.save_pretrained(tmp_path_factory.mktemp("image_pipeline") / "g")


@pytest.fixture(scope="session", autouse=True)
def pixel_cache_folder(tmp_path_factory):
    """Files of pixels go to a folder of the test run, also those of subprocesses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALTI_CACHE", str(tmp_path_factory.mktemp("pixels")))
        yield


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    """The recipe of a tiny pipeline, beside those of its stages; its output is `out` beside them."""
    folder = tmp_path_factory.mktemp("recipes")
    pipeline = {
        "kind": "pipeline",
        "output": str(folder / "out"),
        "tokenizer": "tokenizer.yaml",
        "prior": "prior.yaml",
        "sample": {"num_images": 6, "options": {"top_p": 0.9}},
        "evaluate": {"max_images": 10, "num_pairs": 4},
    }
    for name, content in {**RECIPES, "pipeline.yaml": pipeline}.items():
        (folder / name).write_text(yaml.safe_dump(content))
    return folder / "pipeline.yaml"
