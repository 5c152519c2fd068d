"""The README.md of a token dataset: what `datasets` and the hub read, and a table for people."""

from pathlib import Path

import yaml

from pipelines.base.atomic_files import write_text
from pipelines.models.token_spec import TokenSpec
from pipelines.tokens.manifest import Manifest
from pipelines.tokens.shards import features


def write_card(folder: Path, spec: TokenSpec, manifest: Manifest) -> None:
    """Write the card. `load_dataset` takes configs and features from its YAML; `vq_tokens` repeats the spec and the
    figures, which no field of `datasets` could hold (`DatasetCard.load(folder).data` has them).
    """
    splits = {name: split for name, split in manifest.splits.items() if split.rows}
    front = {
        "tags": ["image-tokens", "vq_tokens"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in splits],
            }
        ],
        "dataset_info": {
            "features": features(spec)._to_yaml_list(),
            "splits": [
                {"name": name, "num_bytes": sum(shard.bytes for shard in split.shards), "num_examples": split.rows}
                for name, split in splits.items()
            ],
        },
        "vq_tokens": {
            **spec.model_dump(mode="json"),
            "spec_sha256": spec.sha256,
            "digest": manifest.digest,
            "stats": {n: s.stats.model_dump(mode="json") for n, s in splits.items() if s.stats is not None},
        },
    }
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=120)
    write_text(folder / "README.md", f"---\n{header}---\n\n{_body(folder, spec, manifest)}")


def _grids(spec: TokenSpec) -> str:
    grids = [
        f"a grid of\n{grid.rows} x {grid.columns} positions with {grid.num_quantizers} of {grid.num_codes} codes each"
        for grid in spec.code_grids
    ]
    return ", then ".join(grids) + (", raster order." if len(grids) == 1 else ",\neach in raster order.")


def _body(folder: Path, spec: TokenSpec, manifest: Manifest) -> str:
    rows = "\n".join(
        f"| {name} | {split.rows:,} | {len(split.skipped)} | "
        + (
            f"{split.stats.codes_used} | {split.stats.perplexity:.1f} | {split.stats.unigram_bits:.3f} | "
            f"{split.stats.psnr_db:.2f} ({split.stats.psnr_images} images) | {split.stats.verdict} |"
            if split.stats is not None
            else "| | | | |"
        )
        for name, split in manifest.splits.items()
    )
    picture = "![Images above, their tokens decoded below](reconstructions.png)\n\n"
    return f"""# Image tokens

Each row is one {spec.preprocess.size} x {spec.preprocess.size} image as {spec.tokens_per_image} tokens: {_grids(spec)}
Written by `smalti encode`.

| split | rows | skipped | codes used | perplexity | unigram bits a token | PSNR, dB | codebook |
|---|---|---|---|---|---|---|---|
{rows}

{picture if (folder / "reconstructions.png").is_file() else ""}```python
from datasets import load_dataset
rows = load_dataset("path/of/this/folder").with_format("numpy", dtype="{spec.dtype}")
```

`smalti decode path/of/this/folder --output pictures` turns tokens back into images.
The tokenizer's fingerprint is `{spec.tokenizer.fingerprint}`.
"""
