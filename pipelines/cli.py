"""`smalti …`: each command reads its arguments and hands them to the function of the same name."""

import gc
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipelines.base.errors import UserError
from pipelines.base.machine_errors import machine_error
from pipelines.base.quiet_libraries import silence_libraries
from pipelines.base.signals import Interrupted, raise_on_signals
from pipelines.recipes.command_options import (
    LARGEST_SEED,
    MOST_IMAGES,
    BatchSize,
    Data,
    Draws,
    Finite,
    MaxImages,
    Output,
    Overrides,
    Overwrite,
    PrintConfig,
    Recipe,
    Split,
    Tokenizer,
    finite,
)

app = typer.Typer(
    name="smalti",
    help="Images into discrete tokens, a transformer over the tokens, and new images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class RecipeKind(StrEnum):
    tokenizer = "tokenizer"
    prior = "prior"
    pipeline = "pipeline"


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    print_config: PrintConfig = False,
) -> None:
    """Train a tokenizer or a prior, or continue it.

    Example: smalti train configs/shapes/tokenizer.yaml training.steps=2000 output=runs/mine
    """
    from pipelines.base.recipe_files import dump
    from pipelines.recipes.stages import load_recipe

    resolved = load_recipe(recipe, overrides)
    if print_config:
        print(dump(resolved), end="")
        return
    from pipelines.train import train_recipe

    train_recipe(resolved, overwrite)


@app.command()
def encode(
    tokenizer: Annotated[str, typer.Argument(help="a tokenizer's run or model folder")],
    output: Output,
    data: Data = None,
    split: Annotated[list[str] | None, typer.Option(help="may be repeated [train, validation and test]")] = None,
    shards: Annotated[int | None, typer.Option(min=1, max=100_000, help="files per split [one per 4,096 rows]")] = None,
    batch_size: BatchSize = 256,
    overwrite: Overwrite = False,
) -> None:
    """Turn images into a token dataset, or continue doing so.

    Example: smalti encode runs/shapes/tokenizer --output runs/shapes/tokens
    """
    from pipelines.data import SPLITS
    from pipelines.encode import encode as command
    from pipelines.recipes.data_arguments import data_of

    command(tokenizer, data_of(data, tokenizer), output, split or SPLITS, shards, batch_size, overwrite)


@app.command()
def decode(
    tokens: Annotated[str, typer.Argument(help="a token dataset")],
    output: Output,
    tokenizer: Annotated[str | None, typer.Option(help="another folder of the same tokenizer [the one inside]")] = None,
    split: Split = "test",
    max_images: MaxImages = None,
    batch_size: BatchSize = 64,
    overwrite: Overwrite = False,
) -> None:
    """Turn a token dataset back into images.

    Example: smalti decode runs/shapes/tokens --output decoded --max-images 64
    """
    from pipelines.decode import decode as command

    command(tokenizer, tokens, output, split, max_images, batch_size, overwrite)


@app.command()
def sample(
    model: Annotated[
        str,
        typer.Argument(
            help="an image pipeline, the output of `smalti run`, a continuous tokenizer or its run, or a hub repository"
        ),
    ],
    output: Output,
    label: Annotated[list[str] | None, typer.Option(help="class name or number; may be repeated [all in turn]")] = None,
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, max=MOST_IMAGES, help="images in all")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="image i depends on the seed and i alone")] = 0,
    temperature: Annotated[Finite, typer.Option(callback=finite, help="[the image pipeline's own, as below]")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, max=2**32, help="only the k likeliest codes")] = None,
    top_p: Annotated[Finite, typer.Option(callback=finite, help="only the likeliest codes of this mass")] = None,
    min_p: Annotated[
        float | None, typer.Option(callback=finite, help="only codes this likely relative to the likeliest")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(callback=finite, help="uncond + s * (cond - uncond); 1 is off")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="always the likeliest code")] = False,
    batch_size: BatchSize = 64,
    overwrite: Overwrite = False,
) -> None:
    """Draw new images: tokens or latents from the prior, then pixels.

    Example: smalti sample runs/shapes --label "red circle" -n 16 --output drawn
    """
    from pipelines.sample import SampleRequest
    from pipelines.sample import sample as command

    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "guidance_scale": guidance_scale,
        "do_sample": False if greedy else None,
    }
    options = {name: value for name, value in given.items() if value is not None}
    labels = tuple(label) if label else None
    request = SampleRequest(labels=labels, num_images=num_images, seed=seed, batch_size=batch_size, options=options)
    command(model, output, request, overwrite)


@app.command()
def reconstruct(
    tokenizer: Tokenizer,
    output: Output,
    data: Data = None,
    split: Split = "test",
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, max=1024, help="pairs on the figure")] = 16,
    max_images: MaxImages = None,
    batch_size: BatchSize = 64,
    overwrite: Overwrite = False,
) -> None:
    """Show and measure (PSNR, SSIM) what a tokenizer keeps of held-out images.

    Example: smalti reconstruct runs/shapes/tokenizer --output rebuilt
    """
    from pipelines.recipes.data_arguments import data_of, split_of
    from pipelines.reconstruct import ReconstructionRequest
    from pipelines.reconstruct import reconstruct as command

    request = ReconstructionRequest(
        split=split_of(split), max_images=max_images, num_pairs=num_images, batch_size=batch_size
    )
    command(tokenizer, data_of(data, tokenizer), output, request, overwrite)


@app.command()
def evaluate(
    model: Tokenizer,
    output: Output,
    data: Data = None,
    split: Split = "test",
    draws: Draws = 5000,
    max_images: MaxImages = None,
    batch_size: BatchSize = 64,
    overwrite: Overwrite = False,
) -> None:
    """Measure a stage-one model on held-out images: likelihood, PSNR, the health of its latent, disentanglement.

    Example: smalti evaluate runs/vae_family/vae --output evaluated --draws 5000
    """
    from pipelines.evaluate_model import EvaluationRequest, evaluate_model
    from pipelines.recipes.data_arguments import data_of, split_of

    request = EvaluationRequest(split=split_of(split), max_images=max_images, draws=draws, batch_size=batch_size)
    evaluate_model(model, data_of(data, model), output, request, overwrite)


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    print_config: PrintConfig = False,
) -> None:
    """Run a whole pipeline: train a tokenizer, encode, train a prior, sample, evaluate. Rerunning resumes.

    Example: smalti run configs/shapes/pipeline.yaml
    """
    from pipelines.base.recipe_files import dump
    from pipelines.recipes.pipeline import load_pipeline

    resolved = load_pipeline(recipe, overrides)
    if print_config:
        print(dump(resolved), end="")
        return
    from pipelines.run import run as command

    command(resolved, overwrite)


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="a run, a model, a token dataset or an image pipeline")],
    verify: Annotated[
        int | None, typer.Option(min=1, max=MOST_IMAGES, help="encode so many random rows again and compare")
    ] = None,
    split: Annotated[str | None, typer.Option(help="look at this split only")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="the figure of codebook or latent, a .png file [health.png inside]"),
    ] = None,
) -> None:
    """Say what a folder holds and whether its codebook or latent is healthy, with a figure.

    Example: smalti inspect runs/shapes/tokens --verify 100
    """
    from pipelines.inspect import inspect as command

    command(folder, verify, split, output)


@app.command()
def schema(kind: RecipeKind) -> None:
    """Print the JSON schema of a recipe, for editors that complete and check YAML.

    Example: smalti schema tokenizer > tokenizer.schema.json
    """
    from pipelines.schema import schema as command

    print(command(kind))


def main() -> None:
    """Entry point. A mistake of the user or a failure of the machine is one message and exit code 2, a signal is one
    message and 128 + its number; `--debug` anywhere shows the traceback. Typer ends without a word when the reader of
    a pipe has left (`smalti inspect … | head`).
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    raise_on_signals()
    silence_libraries()
    gc.set_threshold(100_000, 50, 50)  # importing torch makes many objects that stay: looking through them takes 0.2 s
    try:
        app(args=arguments, prog_name="smalti")
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else machine_error(error)
        exit_code, first = _exit_code_of_all(1 if message is None else 2)
        if first and (debug or message is None):
            raise
        _end(exit_code, message if first else None)
    except Interrupted as stop:
        exit_code, first = _exit_code_of_all(stop.exit_code)
        _end(exit_code, str(stop) if first else None)


def _exit_code_of_all(mine: int) -> tuple[int, bool]:
    """The exit code of all processes, and whether this one speaks for them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return mine, True
    from pipelines.base.rank_failures import report_failure  # imports torch

    return report_failure(mine)


def _end(exit_code: int, message: str | None) -> NoReturn:
    if message is not None:
        print(f"smalti: {message}", file=sys.stderr)
    if "triton" not in sys.modules:  # whose bindings would report all that is left as leaked
        gc.freeze()  # at its end the interpreter would look through all of torch's objects once more: 0.3 s
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
