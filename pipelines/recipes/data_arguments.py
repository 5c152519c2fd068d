"""What `--data`, `--split`, `--prompts` and `--candidates` of the command line mean."""

import os
from io import StringIO
from pathlib import Path
from typing import cast, get_args

from pipelines.base.documents import read_text
from pipelines.base.errors import UserError
from pipelines.base.recipe_files import find_recipe, validate
from pipelines.base.recipe_inheritance import read_recipe
from pipelines.data import DataConfig, Split
from pipelines.models.candidate_options import CandidateOptions
from pipelines.models.checkpoint import tokenizer_config
from pipelines.models.image_pipeline_folder import find_tokenizer
from pipelines.recipes.pipeline import read_part


def data_of(argument: str | None, tokenizer: str | Path, whole: bool = False) -> DataConfig:
    """The images that a command reads: `--data FILE.yaml` (its `data` block, of a pipeline its tokenizer's), `--data
    FOLDER` of images, or, without `--data`, those that the tokenizer's run was trained on.

    `tokenizer` is a run or model folder, an image pipeline, or the output of `smalti run`. `whole`: a folder without
    splits of its own is not divided.

    Raises:
        UserError: there is no such file or folder, or the tokenizer does not stand in its run.
    """
    given, tokenizer = Path(tokenizer), find_tokenizer(tokenizer)
    if argument is None:
        for folder in (given, given.parent):
            if os.path.lexists(folder / "recipe.yaml"):
                return _data_block(folder / "recipe.yaml")
        raise UserError(f"{given}: is not inside the run that trained it, so its data is unknown; expected --data")
    path = Path(argument)
    if path.is_dir():
        preprocess = tokenizer_config(tokenizer).preprocess
        source = {"kind": "huggingface", "path": "imagefolder", "arguments": {"data_dir": str(path)}}
        shares = {"validation_fraction": 0, "test_fraction": 0} if whole else {}
        return validate(DataConfig, {"source": source, "preprocess": preprocess.model_dump(), **shares}, path)
    return _data_block(find_recipe(path))


def split_of(name: str) -> Split:
    """Raises UserError where `name` is no split."""
    if name not in get_args(Split):
        raise UserError(f"--split: found {name!r}, expected one of {', '.join(get_args(Split))}")
    return cast(Split, name)


def prompts_of(prompts: list[str] | None, file: Path | None) -> tuple[str, ...] | None:
    """The prompts of `--prompt`, then those of `--prompts FILE`, one a line; empty lines are left out.

    Raises:
        UserError: the file cannot be read, is no text, or holds no prompt.
    """
    lines = [] if file is None else [line.strip() for line in StringIO(read_text(file), newline=None)]
    if file is not None and not any(lines):
        raise UserError(f"{file}: --prompts: found no prompt, expected one a line")
    return (*(prompts or ()), *filter(None, lines)) or None


def candidates_of(num_candidates: int | None, keep: int | None, rerank: str | None) -> CandidateOptions | None:
    """What `--candidates`, `--keep` and `--rerank` ask for; None where all images are kept.

    Raises:
        UserError: more are to be kept than drawn, nothing is to be chosen from, or no such way to choose.
    """
    chosen = {name: value for name, value in (("keep", keep), ("rerank", rerank)) if value is not None}
    if num_candidates is None:
        if chosen:
            raise UserError(f"--{next(iter(chosen))}: needs --candidates, how many images to choose from")
        return None
    return validate(CandidateOptions, {"num_candidates": num_candidates, **chosen}, "--candidates")


def _data_block(path: Path) -> DataConfig:
    content, key = read_recipe(path), "data"
    if content.get("kind") == "pipeline":
        content, key = read_part(path, content.get("tokenizer")), "tokenizer.data"
    if not isinstance(content, dict) or "data" not in content:
        kind = f", but this is one of a {content['kind']}" if isinstance(content, dict) and "kind" in content else ""
        raise UserError(f"{path}: {key}: missing; expected a block as in a tokenizer recipe{kind}")
    return validate(DataConfig, content["data"], f"{path}: {key}")
