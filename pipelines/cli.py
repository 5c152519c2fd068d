"""`smalti …`: each command reads its arguments and hands them to the verb of the same name."""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import UserError

app = typer.Typer(
    name="smalti",
    help="Pictures into discrete tokens, a transformer over the tokens, and new pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Recipe = Annotated[str, typer.Argument(help="a YAML recipe: a file, or one that is shipped (configs/…)")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value …, applied to the recipe", metavar="[KEY=VALUE]…")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="start over instead of continuing")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="print the resolved recipe and stop")]
Output = Annotated[Path, typer.Option("--output", "-o", help="folder to write")]
BatchSize = Annotated[int, typer.Option(min=1, help="images at once; bounds memory, never changes results")]
Split = Annotated[str, typer.Option(help="train, validation or test")]


class RecipeKind(StrEnum):
    tokenizer = "tokenizer"
    prior = "prior"
    pipeline = "pipeline"
