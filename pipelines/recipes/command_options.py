"""Arguments and options that several commands share, as typer reads them. Nothing heavy is imported."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

MOST_IMAGES = 10_000_000  # of one call: beyond it, lists of names and seeds no longer fit in memory
LARGEST_SEED = 2**63 - 1


def finite(value: float | None) -> float | None:
    """Raises typer.BadParameter for a number that is none (nan) or beyond all bounds (inf)."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"found {value}, expected a finite number")
    return value


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers, separated by commas. Raises typer.BadParameter for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"found {text!r}, expected whole numbers such as 0,3,5") from error


def sampling_options(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    guidance_scale: float | None,
    greedy: bool,
) -> dict[str, Any]:
    """The options of `prior.SamplingOptions` that were given."""
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "guidance_scale": guidance_scale,
        "do_sample": False if greedy else None,
    }
    return {name: value for name, value in given.items() if value is not None}


Finite = float | None
Recipe = Annotated[str, typer.Argument(help="a YAML recipe: a file, or one that is shipped (configs/…)")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.sub=value …, applied to the recipe", metavar="[KEY=VALUE]…")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="start over instead of continuing")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="print the resolved recipe and stop")]
Output = Annotated[Path, typer.Option("--output", "-o", help="folder to write")]
BatchSize = Annotated[int, typer.Option(min=1, max=2**20, help="images at once; bounds memory, never changes results")]
Split = Annotated[str, typer.Option(help="train, validation or test")]
MaxImages = Annotated[int | None, typer.Option(min=1, max=MOST_IMAGES, help="the first so many images [all]")]
Data = Annotated[str | None, typer.Option(help="a recipe with a data block, or a folder of images [the run's own]")]
Tokenizer = Annotated[str, typer.Argument(help="a tokenizer's run or model folder, or an image pipeline")]
Prompt = Annotated[
    list[str] | None, typer.Option(help="caption, for a prior trained on captions; may be repeated [all in turn]")
]
Prompts = Annotated[Path | None, typer.Option(help="a text file with a caption a line", metavar="FILE")]
NumImages = Annotated[
    int | None,
    typer.Option(
        "--num-images", "-n", min=1, max=MOST_IMAGES, help="images in all [64, or one a prompt if more, or all kept]"
    ),
]
Temperature = Annotated[
    Finite,
    typer.Option(callback=finite, help="below 1: likelier codes or latents [the image pipeline's own, as below]"),
]
TopK = Annotated[int | None, typer.Option(min=1, max=2**32, help="only the k likeliest codes")]
TopP = Annotated[Finite, typer.Option(callback=finite, help="only the likeliest codes of this mass")]
MinP = Annotated[Finite, typer.Option(callback=finite, help="only codes this likely relative to the likeliest")]
GuidanceScale = Annotated[Finite, typer.Option(callback=finite, help="uncond + s * (cond - uncond); 1 is off")]
Greedy = Annotated[bool, typer.Option("--greedy", help="always the likeliest code")]
NumCandidates = Annotated[
    int | None,
    typer.Option("--candidates", min=1, max=2**16, help="images to draw of each prompt or label, and choose"),
]
Keep = Annotated[int | None, typer.Option(min=1, help="how many candidates to keep, the best first [1]")]
Rerank = Annotated[
    str | None,
    typer.Option(
        help="choose by 'likelihood', 'likelihood_ratio' (with the prompt over without) or 'clip:FOLDER' [likelihood]"
    ),
]
Draws = Annotated[int, typer.Option(min=1, max=10**7, help="latents that bound the likelihood of each image")]
