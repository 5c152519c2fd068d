"""The folder of an image pipeline: `tokenizer/`, `prior/`, `generation_config.json`, and `model_index.json`."""

from pathlib import Path

from pipelines.base.atomic_files import write_json, write_text
from pipelines.base.documents import read_json_mapping
from pipelines.base.errors import UserError
from pipelines.base.output_folder import OutputFolder, OutputKind
from pipelines.base.recipe_files import validate
from pipelines.models.captions import CAPTIONS, takes_captions
from pipelines.models.checkpoint import LoadedPrior, LoadedTokenizer, save_prior, save_tokenizer
from prior import SamplingOptions

FORMAT = "smalti-image-pipeline/1"
PARTS = {"tokenizer": "Autoencoder", "prior": "TokenPrior"}
IMAGE_PIPELINE = OutputKind(
    "an image pipeline",
    "smalti run",
    owned=(
        "model_index.json",
        "generation_config.json",
        "README.md",
        *(f"{part}/{name}" for part in PARTS for name in ("config.json", "model.safetensors", "README.md")),
        f"prior/{CAPTIONS}",
    ),
    key="folder",
)

CARD = """---
library_name: smalti
tags: [image-generation, image-tokens]
---

# A smalti image pipeline

Draws {size} x {size} {mode} images: {tokens} tokens of {codes} codes ({kind}), one after the other, then decoded.

{condition}.

```python
from pipelines import ImageGenerationPipeline

pipe = ImageGenerationPipeline.from_pretrained("this folder")
pipe({argument}num_images_per_prompt=4, generator=0).images[0]
```
"""


def find_image_pipeline(path: str | Path) -> Path:
    """The folder of an image pipeline itself, or `image_pipeline/` in the output of `smalti run`.

    Raises:
        UserError: neither is there, or a part is missing.
    """
    path = Path(path)
    folder = next((f for f in (path, path / "image_pipeline") if (f / "model_index.json").is_file()), None)
    if folder is None:
        found = "no such folder" if not path.exists() else "has no model_index.json"
        raise UserError(
            f"{path}: {found}; expected the folder of an image pipeline, or the output of `smalti run`, which holds one"
        )
    index = read_json_mapping(folder / "model_index.json")
    if index.get("format") != FORMAT:
        raise UserError(f"{folder / 'model_index.json'}: found format {index.get('format')!r}, expected {FORMAT!r}")
    for part in (*PARTS, "generation_config.json"):
        if not (folder / part).exists():
            raise UserError(
                f"{folder}: {part} is missing; an image pipeline holds {', '.join(PARTS)}, generation_config.json"
            )
    return folder


def find_tokenizer(path: str | Path) -> Path:
    """The tokenizer of an image pipeline, or of the output of `smalti run`; any other path itself."""
    for folder in (Path(path), Path(path) / "image_pipeline"):
        if (folder / "model_index.json").is_file():
            return folder / "tokenizer"
    return Path(path)


def find_prior(path: str | Path) -> Path | None:
    """The prior of an image pipeline, or of the output of `smalti run`; None of any other path."""
    tokenizer = find_tokenizer(path)
    return tokenizer.parent / "prior" if (tokenizer.parent / "model_index.json").is_file() else None


def read_generation_config(folder: Path) -> SamplingOptions:
    """The sampling options of an image pipeline. UserError names the key that is wrong."""
    path = folder / "generation_config.json"
    return validate(SamplingOptions, read_json_mapping(path), path)


def write_image_pipeline(
    folder: str | Path,
    tokenizer: LoadedTokenizer,
    prior: LoadedPrior,
    options: SamplingOptions,
    overwrite: bool = False,
    card: str | None = None,
) -> Path:
    """Write the folder, which can be moved as a whole. `model_index.json` is written last: without it nothing is
    loaded, and the next call starts over.

    Raises:
        UserError: the folder holds an image pipeline and `overwrite` is off, or it holds anything else.
    """
    folder = Path(folder)
    target = OutputFolder(folder, IMAGE_PIPELINE)
    target.check(overwrite)
    if (folder / "model_index.json").is_file() and not overwrite:
        raise UserError(f"{folder}: holds an image pipeline already; expected a new folder, or overwrite=True")
    with target.begin(overwrite=True):
        save_tokenizer(folder / "tokenizer", tokenizer.model, tokenizer.preprocess)
        save_prior(folder / "prior", prior.model, prior.spec, prior.classes, captions=prior.captions)
        write_json(folder / "generation_config.json", options.model_dump(mode="json"))
        write_text(folder / "README.md", card or _card(tokenizer, prior))
        index = {"format": FORMAT, "_class_name": "ImageGenerationPipeline"}
        write_json(folder / "model_index.json", index | {part: [part, name] for part, name in PARTS.items()})
    return folder


def _card(tokenizer: LoadedTokenizer, prior: LoadedPrior) -> str:
    spec, config, vocabulary = prior.spec, tokenizer.model.config, prior.model.vocabulary
    labels = ", ".join(prior.classes or (f"{vocabulary.num_classes} labels",))
    condition = "Labels: none" if vocabulary.num_classes is None else f"Labels: {labels}"
    if takes_captions(vocabulary):
        condition = f"Prompts: captions of at most {vocabulary.condition.length} tokens"
    return CARD.format(
        size=config.image_size,
        mode=spec.preprocess.mode,
        tokens=spec.tokens_per_image,
        codes=" + ".join(str(grid.num_codes) for grid in spec.code_grids),
        kind=config.bottleneck.kind,
        condition=condition,
        argument='"a caption", ' if takes_captions(vocabulary) else "",
    )
