"""What `smalti inspect` says of a token dataset: names and texts, in order."""

import json

from pipelines.models.token_spec import TokenSpec
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.manifest import ManifestSplit
from tokenizer import CodeGrids

Facts = list[tuple[str, str]]


def dataset_facts(dataset: TokenDataset) -> Facts:
    splits = [(name, split_text(entry)) for name, entry in dataset.manifest.splits.items()]
    return [*spec_facts(dataset.spec), ("digest", f"{dataset.manifest.digest[:12]}…"), *splits]


def spec_facts(spec: TokenSpec) -> Facts:
    size = spec.preprocess.size
    return [
        ("images", f"{size} x {size} {spec.preprocess.mode}"),
        ("codes", f"{grids_text(spec.code_grids, '')}, {spec.tokens_per_image} tokens an image, {spec.dtype}"),
        ("classes", shortened(spec.classes)),
        ("tokenizer", f"{spec.tokenizer.kind}, fingerprint {spec.tokenizer.fingerprint[:12]}…"),
        ("source", json.dumps(spec.source.data.get("source", spec.source.data))),
        ("computed", f"{spec.compute.dtype}, torch {spec.compute.torch}, {spec.compute.device}"),
    ]


def split_text(entry: ManifestSplit) -> str:
    size = sum(shard.bytes for shard in entry.shards)
    text = f"{entry.rows:,} rows in {len(entry.shards)} files, {size / max(entry.rows, 1):.0f} bytes a row"
    if entry.skipped:
        keys = shortened(tuple(skipped.key for skipped in entry.skipped))
        text += f"; {len(entry.skipped)} unreadable images left out: {keys}"
    if entry.stats is not None:
        text += (
            f"\n{entry.stats.codes_used} codes used, perplexity {entry.stats.perplexity:.1f}, "
            f"{entry.stats.unigram_bits:.3f} unigram bits a token, reconstruction {entry.stats.psnr_db:.2f} dB "
            f"(PSNR over {entry.stats.psnr_images} images)"
        )
    return text


def grids_text(grids: CodeGrids, codes: str = " codes") -> str:
    """The size of the codebook and the grid of each level, coarse to fine."""
    return "; ".join(f"{grid.num_codes}{codes}, grid {grid}" for grid in grids)


def shortened(names: tuple[str, ...] | None, most: int = 10) -> str:
    """The number of the names and the first of them."""
    if names is None:
        return "none"
    return f"{len(names)}: {', '.join(names[:most])}{' …' if len(names) > most else ''}"
