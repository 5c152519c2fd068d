"""`smalti …`: each command reads its arguments and hands them to the function of the same name."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.base.program import run_program
from pipelines.cli_completion import complete
from pipelines.recipes.command_options import (
    LARGEST_SEED,
    MOST_IMAGES,
    BatchSize,
    Data,
    Draws,
    Greedy,
    GuidanceScale,
    Keep,
    MaxImages,
    MinP,
    NumCandidates,
    NumImages,
    Output,
    Overrides,
    Overwrite,
    PrintConfig,
    Prompt,
    Prompts,
    Recipe,
    Rerank,
    Split,
    Temperature,
    Tokenizer,
    TopK,
    TopP,
    numbers,
    sampling_options,
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
    classifier = "classifier"
    pipeline = "pipeline"


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    print_config: PrintConfig = False,
) -> None:
    """Train a tokenizer, a prior, or a classifier that checks labels of samples; or continue it.

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
    prompt: Prompt = None,
    prompts: Prompts = None,
    label: Annotated[list[str] | None, typer.Option(help="class name or number; may be repeated [all in turn]")] = None,
    num_images: NumImages = None,
    candidates: NumCandidates = None,
    keep: Keep = None,
    rerank: Rerank = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="image i depends on the seed and i alone")] = 0,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    guidance_scale: GuidanceScale = None,
    greedy: Greedy = False,
    batch_size: BatchSize = 64,
    overwrite: Overwrite = False,
) -> None:
    """Draw new images: tokens or latents from the prior, then pixels.

    Example: smalti sample runs/shapes --prompt "a small red circle" -n 16 --output drawn
    """
    from pipelines.recipes.data_arguments import candidates_of, prompts_of
    from pipelines.sample import SampleRequest
    from pipelines.sample import sample as command

    captions = prompts_of(prompt, prompts)
    request = SampleRequest(
        prompts=captions,
        labels=tuple(label) if label else None,
        num_images=num_images or (None if candidates else max(64, len(captions or ()))),
        candidates=candidates_of(candidates, keep, rerank),
        seed=seed,
        batch_size=batch_size,
        options=sampling_options(temperature, top_k, top_p, min_p, guidance_scale, greedy),
    )
    command(model, output, request, overwrite)


app.command()(complete)


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
    samples: Annotated[
        Path | None,
        typer.Option(help="output of `smalti sample` from this model: do images show their labels or captions?"),
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="run of the classifier that tells; shapes in colour need none")
    ] = None,
    batch_size: BatchSize = 64,
    overwrite: Overwrite = False,
) -> None:
    """Measure a stage-one model on held-out images: likelihood, PSNR, the health of its latent, disentanglement; of an
    image pipeline also its prior. With --samples also how many of its samples show their label or caption.

    Example: smalti evaluate runs/vae_family/vae --output evaluated --draws 5000
    """
    from pipelines.evaluate_model import EvaluationRequest, evaluate_model
    from pipelines.recipes.data_arguments import data_of, split_of

    request = EvaluationRequest(
        split=split_of(split),
        max_images=max_images,
        draws=draws,
        batch_size=batch_size,
        samples=samples,
        classifier=classifier,
    )
    evaluate_model(model, data_of(data, model), output, request, overwrite)


@app.command()
def interpolate(
    tokenizer: Tokenizer,
    output: Output,
    start: Annotated[list[str], typer.Option("--from", help="a row of the split, or an image file; may be repeated")],
    end: Annotated[list[str], typer.Option("--to", help="the same; as many as --from")],
    data: Data = None,
    split: Split = "test",
    steps: Annotated[int, typer.Option(min=2, max=256, help="latents from one to the other")] = 8,
    spherical: Annotated[bool, typer.Option("--spherical", help="at equal angles, not along a line")] = False,
    gif: Annotated[bool, typer.Option("--gif", help="an animation too")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Show what lies between two images in the latent space of a tokenizer.

    Example: smalti interpolate runs/vae_family/vae --from 0 --to 7 --spherical --output between
    """
    from pipelines.evaluate.chosen_images import is_row
    from pipelines.interpolate import InterpolationRequest
    from pipelines.interpolate import interpolate as command
    from pipelines.recipes.data_arguments import data_of, split_of

    if len(start) != len(end):
        raise typer.BadParameter(f"found {len(start)} --from and {len(end)} --to, expected as many of each")
    pairs = tuple(zip(start, end, strict=True))
    request = InterpolationRequest(pairs=pairs, split=split_of(split), steps=steps, spherical=spherical, animation=gif)
    rows = any(is_row(name) for name in (*start, *end))
    command(tokenizer, data_of(data, tokenizer) if rows else None, output, request, overwrite)


@app.command()
def traverse(
    tokenizer: Tokenizer,
    output: Output,
    data: Data = None,
    split: Split = "test",
    row: Annotated[
        int | None,
        typer.Option(min=0, help="the image to start from [the mean of all latents, where labels do not count]"),
    ] = None,
    span: Annotated[
        float, typer.Option("--range", min=0.01, max=1000, help="how far each way, in standard deviations")
    ] = 3.0,
    steps: Annotated[int, typer.Option(min=2, max=256, help="values of each latent")] = 9,
    latents: Annotated[str | None, typer.Option(help="numbers, as in 0,3,5 [the 12 of largest KL]")] = None,
    max_images: Annotated[int, typer.Option(min=2, max=MOST_IMAGES, help="images that give KL and range")] = 1000,
    overwrite: Overwrite = False,
) -> None:
    """Show what each latent of a continuous tokenizer does: a grid and an animation.

    Example: smalti traverse runs/vae_family/vae --row 3 --latents 0,3,5 --output traversed
    """
    from pipelines.recipes.data_arguments import data_of, split_of
    from pipelines.traverse import TraversalRequest
    from pipelines.traverse import traverse as command

    request = TraversalRequest(
        row=row,
        split=split_of(split),
        span=span,
        steps=steps,
        latents=None if latents is None else numbers(latents),
        max_images=max_images,
    )
    command(tokenizer, data_of(data, tokenizer), output, request, overwrite)


@app.command()
def anomaly(
    model: Tokenizer,
    output: Output,
    data: Data = None,
    split: Split = "test",
    foreign: Annotated[list[str] | None, typer.Option(help="label of foreign images; may be repeated")] = None,
    foreign_data: Annotated[str | None, typer.Option(help="foreign images: as --data, but all of a folder")] = None,
    draws: Draws = 100,
    max_images: MaxImages = None,
    batch_size: BatchSize = 64,
    overwrite: Overwrite = False,
) -> None:
    """Score how unlikely each image is, and how well that tells foreign images from known ones.

    Example: smalti anomaly runs/vae_family/vae --foreign Bag --output scored
    """
    from pipelines.anomaly import AnomalyRequest, score_anomalies
    from pipelines.recipes.data_arguments import data_of, split_of

    request = AnomalyRequest(
        split=split_of(split),
        max_images=max_images,
        draws=draws,
        foreign=tuple(foreign or ()),
        batch_size=batch_size,
    )
    others = None if foreign_data is None else data_of(foreign_data, model, whole=True)
    score_anomalies(model, data_of(data, model), output, request, others, overwrite)


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
    """Entry point."""
    run_program(app)


if __name__ == "__main__":
    main()
