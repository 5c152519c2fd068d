"""The unigram and the bigram of a token dataset: counted once, by `encode`, and stored with the tokens."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipelines.base.atomic_files import replacing, sha256_of
from pipelines.base.errors import UserError
from pipelines.data.source import Split
from pipelines.models.token_spec import TokenSpec
from pipelines.tokens.manifest import BaselinesEntry
from prior import CountBaselines


def write_baselines(folder: Path, baselines: CountBaselines, split: Split) -> BaselinesEntry:
    """Write the counts into a token dataset; returns what the manifest says of the file."""
    path = folder / "baselines.safetensors"
    with replacing(path) as temporary:
        save_file(baselines.to_tensors(), temporary)
    return BaselinesEntry(split=split, bytes=path.stat().st_size, sha256=sha256_of(path))


def read_baselines(path: Path, sha256: str, spec: TokenSpec) -> CountBaselines:
    """The counts in a file. UserError when it is damaged or belongs to other codes."""
    if (found := sha256_of(path)) != sha256:
        raise UserError(f"{path}: sha256 is {found[:12]}…, manifest.json has {sha256[:12]}…; encode again")
    try:
        baselines = CountBaselines.from_tensors(load_file(path))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as counts of codes ({error}); encode again") from error
    if (baselines.num_codes, baselines.num_quantizers) != (spec.num_codes, spec.num_quantizers):
        raise UserError(
            f"{path}: counts {baselines.num_codes} codes of {baselines.num_quantizers} quantizers, token_spec.json has "
            f"{spec.num_codes} of {spec.num_quantizers}; encode again"
        )
    return baselines
