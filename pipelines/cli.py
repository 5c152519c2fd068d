"""`smalti …`: each command reads its arguments and hands them to the verb of the same name."""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.base.errors import UserError

app = typer.Typer(
    name="smalti",
    help="Pictures into discrete tokens, a transformer over the tokens, and new pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Recipe = Annotated[str, typer.Argument(help="a YAML recipe: a file, or one that is shipped (configs/…)")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.sub=value …, applied to the recipe", metavar="[KEY=VALUE]…")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="start over instead of continuing")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="print the resolved recipe and stop")]
Output = Annotated[Path, typer.Option("--output", "-o", help="folder to write")]
BatchSize = Annotated[int, typer.Option(min=1, help="images at once; bounds memory, never changes results")]
Split = Annotated[str, typer.Option(help="train, validation or test")]


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
    data: Annotated[
        str | None, typer.Option(help="a recipe with a data block, or a folder of images [the run's own]")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="may be repeated [train, validation and test]")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="files per split [one per 4,096 rows]")] = None,
    batch_size: BatchSize = 256,
    overwrite: Overwrite = False,
) -> None:
    """Turn images into a token dataset, or continue doing so.

    Example: smalti encode runs/shapes/tokenizer --output runs/shapes/tokens
    """
    from pipelines.data import SPLITS
    from pipelines.encode import encode as verb
    from pipelines.recipes.data_arguments import data_of

    verb(tokenizer, data_of(data, tokenizer), output, split or SPLITS, shards, batch_size, overwrite)


@app.command()
def decode(
    tokens: Annotated[str, typer.Argument(help="a token dataset")],
    output: Output,
    tokenizer: Annotated[str | None, typer.Option(help="another folder of the same tokenizer [the one inside]")] = None,
    split: Split = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="the first so many images [all]")] = None,
    batch_size: BatchSize = 64,
    overwrite: Overwrite = False,
) -> None:
    """Turn a token dataset back into pictures.

    Example: smalti decode runs/shapes/tokens --output decoded --limit 64
    """
    from pipelines.decode import decode as verb

    verb(tokenizer, tokens, output, split, limit, batch_size, overwrite)


@app.command()
def sample(
    generator: Annotated[str, typer.Argument(help="a generator folder, a pipeline's output, or a hub repository")],
    output: Output,
    label: Annotated[list[str] | None, typer.Option(help="class name or number; may be repeated [all in turn]")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="pictures in all")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="picture i depends on the seed and i alone")] = 0,
    temperature: Annotated[float | None, typer.Option(help="[the generator's own, as below]")] = None,
    top_k: Annotated[int | None, typer.Option(help="only the k likeliest codes")] = None,
    top_p: Annotated[float | None, typer.Option(help="only the likeliest codes of this mass")] = None,
    min_p: Annotated[float | None, typer.Option(help="only codes this likely relative to the likeliest")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="uncond + s * (cond - uncond); 1 is off")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="always the likeliest code")] = False,
    batch_size: BatchSize = 64,
    overwrite: Overwrite = False,
) -> None:
    """Draw new pictures: tokens, then pixels.

    Example: smalti sample runs/shapes --label "red circle" -n 16 --output drawn
    """
    from pipelines.sample import sample as verb

    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "guidance_scale": guidance_scale,
        "do_sample": False if greedy else None,
    }
    options = {name: value for name, value in given.items() if value is not None}
    verb(generator, output, label, n, seed, batch_size, overwrite, **options)  # type: ignore[arg-type]


@app.command()
def reconstruct(
    tokenizer: Annotated[str, typer.Argument(help="a tokenizer's run or model folder, or a generator")],
    output: Output,
    data: Annotated[
        str | None, typer.Option(help="a recipe with a data block, or a folder of images [the run's own]")
    ] = None,
    split: Split = "test",
    n: Annotated[int, typer.Option("-n", min=1, help="pairs on the picture")] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="measure the first so many images [all]")] = None,
    batch_size: BatchSize = 64,
    overwrite: Overwrite = False,
) -> None:
    """Show and measure (PSNR, SSIM) what a tokenizer keeps of held-out images.

    Example: smalti reconstruct runs/shapes/tokenizer --output rebuilt
    """
    from pipelines.recipes.data_arguments import data_of, split_of
    from pipelines.reconstruct import reconstruct as verb

    verb(tokenizer, data_of(data, tokenizer), output, n, split_of(split), limit, batch_size, overwrite)


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
    from pipelines.run import run as verb

    resolved = load_pipeline(recipe, overrides)
    if print_config:
        print(dump(resolved), end="")
        return
    verb(resolved, overwrite)


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="a run, a model, a token dataset or a generator")],
    verify: Annotated[int | None, typer.Option(min=1, help="encode so many random rows again and compare")] = None,
    split: Annotated[str | None, typer.Option(help="look at this split only")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the codebook's picture [health.png inside]")
    ] = None,
) -> None:
    """Say what a folder holds and whether its codebook is healthy, with a picture.

    Example: smalti inspect runs/shapes/tokens --verify 100
    """
    from pipelines.inspect import inspect as verb

    verb(folder, verify, split, output)


@app.command()
def schema(kind: RecipeKind) -> None:
    """Print the JSON schema of a recipe, for editors that complete and check YAML.

    Example: smalti schema tokenizer > tokenizer.schema.json
    """
    from pipelines.recipes.pipeline import PipelineRecipe
    from pipelines.recipes.stages import PriorRecipe, TokenizerRecipe

    models = {"tokenizer": TokenizerRecipe, "prior": PriorRecipe, "pipeline": PipelineRecipe}
    print(json.dumps(models[kind].model_json_schema(), indent=2))


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 2; `--debug` anywhere shows the traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(args=arguments, prog_name="smalti")
    except UserError as error:
        if debug:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"smalti: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("smalti: interrupted; the same command continues from the last saved state", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
