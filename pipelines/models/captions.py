"""`captions.json`: the tokenizer of captions, beside the weights of the prior that reads them."""

from pathlib import Path

from pipelines.base.atomic_files import sha256_of, write_text
from pipelines.base.documents import parse_json, read_text
from pipelines.base.errors import UserError
from prior import CaptionTokenizer, Vocabulary

CAPTIONS = "captions.json"


def takes_captions(vocabulary: Vocabulary) -> bool:
    """Whether a prior with this vocabulary reads captions."""
    return vocabulary.condition.name == "caption"


def write_captions(folder: str | Path, captions: CaptionTokenizer) -> str:
    """Write `captions.json` into the folder; returns its sha256."""
    path = Path(folder) / CAPTIONS
    write_text(path, captions.to_json())
    return sha256_of(path)


def read_captions(folder: str | Path, expected_sha256: str | None = None) -> CaptionTokenizer:
    """The tokenizer of captions in the folder.

    Raises:
        UserError: missing, not the file whose sha256 is expected, or no tokenizer of captions.
    """
    path = Path(folder) / CAPTIONS
    if not path.is_file():
        raise UserError(f"{path}: missing; the folder of a prior with captions holds it")
    if expected_sha256 is not None and (found := sha256_of(path)) != expected_sha256:
        raise UserError(
            f"{path}: sha256 is {found[:12]}…, config.json says {expected_sha256[:12]}…: corrupted, or of another prior"
        )
    text = read_text(path)
    parse_json(text, path)  # which has limits
    try:
        return CaptionTokenizer.from_json(text)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as a tokenizer of captions ({error})") from error
