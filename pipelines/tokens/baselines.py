"""The unigrams and the bigrams of a token dataset: counted once, by `encode`, and stored with the tokens."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.base.atomic_files import replacing, sha256_of
from pipelines.base.errors import UserError
from pipelines.data.source import Split
from pipelines.models.token_spec import TokenSpec
from pipelines.tokens.manifest import BaselinesEntry
from prior import BaselineBits, CountBaselines
from tokenizer import CodeGrids, split_codes


class LevelBaselines:
    """A unigram and a bigram for each level of the codes. The first code of a level has no predecessor."""

    def __init__(self, grids: CodeGrids):
        self.grids = grids
        self.levels = [CountBaselines(grid.num_codes) for grid in grids]

    def fit(self, codes: Tensor) -> "LevelBaselines":
        """Count these training codes (b, *code_axes) on top of those before; see `CountBaselines.fit`."""
        for level, part in zip(self.levels, split_codes(codes, self.grids), strict=True):
            level.fit(part)
        return self

    def bits_per_token(self, codes: Tensor) -> BaselineBits:
        """Mean bits of held-out codes of all levels; see `CountBaselines.bits_per_token`."""
        parts = split_codes(codes, self.grids)
        found = [level.bits_per_token(part) for level, part in zip(self.levels, parts, strict=True)]
        if len(found) == 1:
            return found[0]
        shares = [grid.length / sum(each.length for each in self.grids) for grid in self.grids]
        pairs = list(zip(found, shares, strict=True))
        return BaselineBits(sum(b.unigram * share for b, share in pairs), sum(b.bigram * share for b, share in pairs))

    def to_tensors(self) -> dict[str, Tensor]:
        """All that `from_tensors` needs. Names begin with the number of the level where there are several."""
        if len(self.levels) == 1:
            return self.levels[0].to_tensors()
        return {
            f"{i}.{name}": tensor for i, level in enumerate(self.levels) for name, tensor in level.to_tensors().items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], grids: CodeGrids) -> "LevelBaselines":
        """Inverse of `to_tensors`. Raises ValueError for tensors that it did not make for these grids."""
        found = cls(grids)
        parts = [dict(tensors)] if len(grids) == 1 else [_of_level(tensors, i) for i in range(len(grids))]
        if sum(map(len, parts)) != len(tensors):
            raise ValueError(f"found {sorted(tensors)}, expected the counts of {len(grids)} levels")
        found.levels = [CountBaselines.from_tensors(part) for part in parts]
        for level, grid in zip(found.levels, grids, strict=True):
            if (level.num_codes, level.num_quantizers) != (grid.num_codes, grid.num_quantizers):
                raise ValueError(
                    f"counts {level.num_codes} codes of {level.num_quantizers} quantizers, token_spec.json has "
                    f"{grid.num_codes} of {grid.num_quantizers}"
                )
        return found


def _of_level(tensors: Mapping[str, Tensor], level: int) -> dict[str, Tensor]:
    prefix = f"{level}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def write_baselines(folder: Path, baselines: LevelBaselines, split: Split) -> BaselinesEntry:
    """Write the counts into a token dataset; returns what the manifest says of the file."""
    path = folder / "baselines.safetensors"
    with replacing(path) as temporary:
        save_file(baselines.to_tensors(), temporary)
    return BaselinesEntry(split=split, bytes=path.stat().st_size, sha256=sha256_of(path))


def read_baselines(path: Path, sha256: str, spec: TokenSpec) -> LevelBaselines:
    """The counts in a file. UserError when it is damaged or belongs to other codes."""
    if (found := sha256_of(path)) != sha256:
        raise UserError(f"{path}: sha256 is {found[:12]}…, manifest.json has {sha256[:12]}…; encode again")
    try:
        return LevelBaselines.from_tensors(load_file(path), spec.code_grids)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as counts of codes ({error}); encode again") from error
