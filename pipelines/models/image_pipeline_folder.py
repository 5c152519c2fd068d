"""The folder of an image pipeline: `tokenizer/`, `prior/`, `generation_config.json`, and `model_index.json`."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.base.atomic_files import sync, write_json, write_text
from pipelines.base.documents import read_json_mapping
from pipelines.base.errors import UserError
from pipelines.base.output_folder import check_writable
from pipelines.base.recipe_files import validate
from pipelines.models.checkpoint import LoadedPrior, LoadedTokenizer, save_prior, save_tokenizer
from prior import SamplingOptions

FORMAT = "smalti-image-pipeline/1"
PARTS = {"tokenizer": "Autoencoder", "prior": "TokenPrior"}
OWNED_FILES = {
    "model_index.json",
    "generation_config.json",
    "README.md",
    *(f"{part}/{name}" for part in PARTS for name in ("config.json", "model.safetensors", "README.md")),
}

CARD = """---
library_name: smalti
tags: [image-generation, image-tokens]
---

# A smalti image pipeline

Draws {size} x {size} {mode} pictures: {tokens} tokens of {codes} codes ({kind}), one after the other, then decoded.

Labels: {condition}.

```python
from pipelines import ImageGenerationPipeline

pipe = ImageGenerationPipeline.from_pretrained("this folder")
pipe(num_images_per_prompt=4, generator=0).images[0]
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
    """Write the folder: it appears whole or not at all, and can be moved as a whole.

    Raises:
        UserError: the folder holds an image pipeline and `overwrite` is off, or it holds anything else.
    """
    folder = Path(folder)
    check_writable(folder)
    _refuse_occupied(folder, overwrite)
    with _in_place_of(folder) as new:
        save_tokenizer(new / "tokenizer", tokenizer.model, tokenizer.preprocess)
        save_prior(new / "prior", prior.model, prior.spec, prior.classes)
        write_json(new / "generation_config.json", options.model_dump(mode="json"))
        write_text(new / "README.md", card or _card(tokenizer, prior))
        index = {"format": FORMAT, "_class_name": "ImageGenerationPipeline"}
        write_json(new / "model_index.json", index | {part: [part, name] for part, name in PARTS.items()})
    return folder


def _refuse_occupied(folder: Path, overwrite: bool) -> None:
    """Only an image pipeline is ever replaced, and only where nothing else lies in its folder."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{folder}: exists and is not an image pipeline (no model_index.json); choose another folder")
    if not overwrite:
        raise UserError(f"{folder}: holds an image pipeline already; expected a new folder, or overwrite=True")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    if foreign := sorted(names - OWNED_FILES):
        raise UserError(f"{folder}: holds {foreign[0]}, which smalti did not write; choose another folder")


@contextmanager
def _in_place_of(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` at the end; at every moment one of the two is whole on the disk."""
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{word}") for word in ("partial", "old"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _card(tokenizer: LoadedTokenizer, prior: LoadedPrior) -> str:
    spec, config, num_classes = prior.spec, tokenizer.model.config, prior.model.vocabulary.num_classes
    return CARD.format(
        size=config.image_size,
        mode=spec.preprocess.mode,
        tokens=spec.tokens_per_image,
        codes=spec.num_codes,
        kind=config.bottleneck.kind,
        condition="none" if num_classes is None else ", ".join(prior.classes or (f"{num_classes} labels",)),
    )
