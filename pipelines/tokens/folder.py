"""The folder of a token dataset, before and while `smalti encode` writes it."""

from pathlib import Path

from pipelines.base.atomic_files import write_bytes, write_json
from pipelines.base.errors import UserError
from pipelines.base.output_folder import OutputKind
from pipelines.models.checkpoint import LoadedTokenizer
from pipelines.models.token_spec import TokenSpec, differences, read_spec
from pipelines.tokens.dataset import TokenDataset

TOKENIZER_FILES = ("model.safetensors", "README.md", "config.json")  # in the order of writing
OWNED_FILES = (
    "manifest.json",
    "token_spec.json",
    "README.md",
    "reconstructions.png",
    "health.png",
    "baselines.safetensors",
    "data/*.parquet",
    *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
)
TOKEN_DATASET = OutputKind(name="a token dataset", command="smalti encode", owned=OWNED_FILES)
# Another library or device may flip a near-tie; a complete data set stays good all the same.
IGNORED_SPEC_FIELDS = ("compute.",)


def finished_dataset(folder: Path, spec: TokenSpec) -> TokenDataset | None:
    """The finished data set if there is one of this spec, None if there is work to do.

    Raises:
        UserError: the folder holds tokens of another spec.
    """
    if not (folder / "token_spec.json").is_file():
        return None
    complete = (folder / "manifest.json").is_file()
    differing = differences(read_spec(folder / "token_spec.json"), spec)
    if complete:
        differing = [line for line in differing if not line.startswith(IGNORED_SPEC_FIELDS)]
    if differing:
        raise UserError(
            f"{folder}: holds tokens of another spec ({'; '.join(differing[:4])}"
            f"{' …' if len(differing) > 4 else ''}). Choose another --output, or start over with --overwrite"
        )
    if not complete:
        return None
    try:
        return TokenDataset.open(folder)
    except UserError:  # a file was lost or damaged: write it again
        return None


def tokenizer_files(tokenizer: LoadedTokenizer) -> dict[str, bytes]:
    """The files of a tokenizer's folder, which may lie in the folder that is about to be written."""
    return {name: (tokenizer.folder / name).read_bytes() for name in TOKENIZER_FILES}


def prepare_folder(folder: Path, spec: TokenSpec, files: dict[str, bytes]) -> None:
    """Write the spec and the tokenizer. The folder is incomplete from here on, until its manifest is written."""
    (folder / "manifest.json").unlink(missing_ok=True)
    write_json(folder / "token_spec.json", spec.model_dump(mode="json"))
    for name, content in files.items():
        write_bytes(folder / "tokenizer" / name, content)
