"""`smalti complete`: its arguments."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.recipes.command_options import (
    LARGEST_SEED,
    BatchSize,
    Data,
    Greedy,
    GuidanceScale,
    MinP,
    Output,
    Overwrite,
    Split,
    Temperature,
    TopK,
    TopP,
    sampling_options,
)


def complete(
    model: Annotated[str, typer.Argument(help="an image pipeline, the output of `smalti run`, or a hub repository")],
    output: Output,
    image: Annotated[list[str], typer.Option(help="a row of the split, or an image file; may be repeated")],
    redraw: Annotated[
        list[str] | None,
        typer.Option(
            help="rectangle to redraw, in pixels of the prepared image or in %: 0,50%,100%,100% is the lower half; may "
            "be repeated",
            metavar="LEFT,TOP,RIGHT,BOTTOM",
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="an image, white where it is redrawn; cropped and resized as the images are")
    ] = None,
    margin: Annotated[int, typer.Option(min=0, max=2**14, help="redraw so many pixels around as well")] = 0,
    data: Data = None,
    split: Split = "test",
    prompt: Annotated[
        list[str] | None, typer.Option(help="caption, one for all or one for each image [the image's own]")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="class name or number, one for all or one for each image [the image's own]")
    ] = None,
    num_completions: Annotated[
        int, typer.Option("--num-completions", "-n", min=1, max=4096, help="completions of each image")
    ] = 4,
    candidates: Annotated[
        int,
        typer.Option(
            min=1, max=2**16, help="draw so many for each, and choose by the kept tokens that come after a redrawn one"
        ),
    ] = 1,
    paste_original: Annotated[
        bool, typer.Option("--paste-original", help="put the original pixels around the mask back [decoded whole]")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="completion i depends on the seed and i")] = 0,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    guidance_scale: GuidanceScale = None,
    greedy: Greedy = False,
    batch_size: BatchSize = 64,
    overwrite: Overwrite = False,
) -> None:
    """Redraw a part of images and keep the rest.

    A cell of tokens is redrawn if any of its pixels is, at every level of codes; the tokens of all other cells stay.
    Tokens are drawn in raster order, coarse levels first, and see only those before them. So the draws are exact if
    there is one level, and whole rows at the top are kept. Otherwise kept tokens to the right of or below a redrawn one
    have no say in it, unless --candidates lets them choose, which becomes exact as their number grows.

    Example: smalti complete runs/shapes --image 0 --image 1 --redraw 0,50%,100%,100% --output completed
    """
    from pipelines.complete import CompletionRequest
    from pipelines.complete import complete as command
    from pipelines.evaluate.chosen_images import is_row
    from pipelines.recipes.data_arguments import data_of, split_of

    request = CompletionRequest(
        images=tuple(image),
        split=split_of(split),
        redraw=tuple(redraw or ()),
        mask=mask,
        margin=margin,
        prompts=tuple(prompt) if prompt else None,
        labels=tuple(label) if label else None,
        num_completions=num_completions,
        num_candidates=candidates,
        paste_original=paste_original,
        seed=seed,
        batch_size=batch_size,
        options=sampling_options(temperature, top_k, top_p, min_p, guidance_scale, greedy),
    )
    rows = any(is_row(name) for name in image)
    command(model, data_of(data, model) if rows else None, output, request, overwrite)
