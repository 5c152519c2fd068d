"""Images -> token dataset: `smalti encode`. Crash-safe, resumable, the same bytes whatever the number of processes."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from pipelines.base import distributed
from pipelines.base.atomic_files import sha256_of, write_bytes, write_json, write_text
from pipelines.base.errors import UserError
from pipelines.base.progress import console
from pipelines.data import RESOURCES, SPLITS, DataConfig, ImageDataset, Split, open_images
from pipelines.models.checkpoint import LoadedTokenizer, load_tokenizer
from pipelines.models.token_spec import Compute, Source, TokenizerIdentity, TokenSpec, differences, narrowest, read_spec
from pipelines.tokens.card import write_card
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.manifest import Manifest, ManifestSplit, ShardEntry, Skipped, digest_of
from pipelines.tokens.shard_encoder import encode_shards
from pipelines.tokens.shards import Shard, default_shards, finished, plan, row_count, skipped_rows
from pipelines.tokens.statistics import split_statistics
from tokenizer import Autoencoder

OURS = ("manifest.json", "README.md", "reconstructions.png", "data", "tokenizer")
# A newer library or another machine may flip a near-tie; a complete data set stays good all the same.
HARMLESS = ("compute.", "tokenizer.library_version")


@dataclass(frozen=True)
class Encoded:
    """`rows` of tokens in the folder, `skipped` unreadable images. `rate`: images per second of this call, 0.0 when
    another call had already finished the folder (`already_complete`)."""

    folder: Path
    rows: int
    skipped: int
    rate: float
    already_complete: bool
    digest: str


def encode(
    tokenizer_folder: str | Path,
    data: DataConfig,
    output: str | Path,
    splits: Sequence[str] = SPLITS,
    num_shards: int | None = None,
    batch_size: int = 256,
    overwrite: bool = False,
) -> Encoded:
    """Encode `splits` of a data set into the token dataset `output`; rerun to continue after a crash.

    Images are prepared as the tokenizer was trained (its own `preprocess`), never augmented. `num_shards` files a split
    (default: one per 4,096 rows). The network always sees passes of one size (`compute_batch`), so tokens do not
    depend on `batch_size`.

    Raises:
        UserError: continuous tokenizer, another preprocessing than the tokenizer's, an unreadable image where the data
            config refuses them, or an `output` that holds something else and `overwrite` is off.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: found {batch_size}, expected 1 or more")
    output = Path(output)
    accelerator = distributed.start()
    tokenizer = load_tokenizer(tokenizer_folder, accelerator.device)
    lenient = _prepared_as(tokenizer, data)
    datasets: dict[Split, ImageDataset] = {split: open_images(lenient, split) for split in named_splits(splits)}
    spec = build_spec(tokenizer, data, datasets, num_shards, accelerator.device)
    complete = _claim(output, spec, overwrite)
    if complete is not None:
        return _already(complete, accelerator.is_main_process)
    accelerator.wait_for_everyone()  # every rank has looked before the first one writes
    if accelerator.is_main_process:
        _prepare_folder(output, spec, tokenizer.folder, overwrite)
    accelerator.wait_for_everyone()

    shards = [shard for split, images in datasets.items() for shard in plan(split, len(images), spec.shards[split])]
    mine = shards[accelerator.process_index :: accelerator.num_processes]
    pending = [shard for shard in mine if not finished(output, spec, shard)]
    rate = encode_shards(
        tokenizer.model,
        datasets,
        spec,
        pending,
        output,
        refuse_unreadable=data.on_unreadable == "refuse",
        already=sum(len(shard.rows) for shard in mine) - sum(len(shard.rows) for shard in pending),
        visible=accelerator.is_main_process,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _complete(output, spec, shards, tokenizer, datasets)
    accelerator.wait_for_everyone()
    manifest = TokenDataset.open(output).manifest
    encoded = _encoded(output, manifest, rate, already_complete=False)
    if accelerator.is_main_process:
        _tell(encoded, manifest)
    return encoded


def named_splits(splits: Sequence[str]) -> list[Split]:
    """Each split once, in the house's order. UserError for a name that is none, or for none at all."""
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or not splits:
        raise UserError(f"split: found {', '.join(unknown) or 'none'}, expected {', '.join(SPLITS)}")
    return [split for split in SPLITS if split in splits]


def build_spec(
    tokenizer: LoadedTokenizer,
    data: DataConfig,
    datasets: Mapping[Split, ImageDataset],
    num_shards: int | None,
    device: torch.device,
) -> TokenSpec:
    """The spec of encoding `datasets` with `tokenizer`: known before the first image is encoded."""
    model = tokenizer.model
    if model.num_codes is None:
        raise UserError(
            f"{tokenizer.folder}: its bottleneck is {model.config.bottleneck.kind!r}, which has no codes; "
            "a token dataset needs a discrete one (vq, fsq)"
        )
    for split, dataset in datasets.items():
        if len(dataset) == 0:
            raise UserError(f"data: split {split!r} has no images; leave it out of the splits to encode")
    first = next(iter(datasets))
    names = datasets[first].classes
    for split, dataset in datasets.items():
        if dataset.classes != names:
            raise UserError(f"data: split {split!r} has classes {dataset.classes}, split {first!r} has {names}")
    return TokenSpec(
        codebook_size=model.num_codes,
        num_codebooks=model.grid[2],
        grid=model.grid,
        dtype=narrowest(model.num_codes),
        tokenizer=TokenizerIdentity(
            kind=model.config.bottleneck.kind,
            library_version=_version(),
            fingerprint=tokenizer.fingerprint,
            codebook_sha256=codebook_sha256(model),
        ),
        preprocess=tokenizer.preprocess,
        classes=None if names is None else tuple(names),
        has_text=datasets[first].has_text,
        compute=Compute(
            torch=torch.__version__,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            batch=compute_batch(model.config.image_size, device.type),
        ),
        source=Source(
            data=data.model_dump(mode="json", exclude={"preprocess", "augment", *RESOURCES}),
            provenance={split: dataset.provenance for split, dataset in datasets.items()},
            rows={split: len(dataset) for split, dataset in datasets.items()},
        ),
        shards={s: plan(s, len(d), num_shards or default_shards(len(d)))[0].count for s, d in datasets.items()},
    )


def compute_batch(image_size: int, device_type: str) -> int:
    """Images in every forward pass: 64 of up to 64 x 64 pixels, fewer of larger ones, four times as many off the CPU.

    It depends on nothing that a user may change between two runs. Kernels are chosen by shape and round differently,
    and a code that is a near-tie in float32 flips; one shape for every pass, the last one padded, makes the tokens of
    an image independent of the batch size and of the processes beside it.
    """
    budget = 64 * 64 * 64 * (1 if device_type == "cpu" else 4)
    return max(1, min(64 if device_type == "cpu" else 256, budget // image_size**2))


def codebook_sha256(model: Autoencoder) -> str:
    """Hash of what turns codes into latents: the bottleneck's configuration and its tensors."""
    digest = hashlib.sha256(json.dumps(model.config.bottleneck.encode_config(), sort_keys=True).encode())
    for name, tensor in sorted(model.bottleneck.encode_state().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _prepared_as(tokenizer: LoadedTokenizer, data: DataConfig) -> DataConfig:
    found, expected = data.preprocess.model_dump(), tokenizer.preprocess.model_dump()
    wrong = [
        f"{key}: found {found[key]!r}, expected {value!r}" for key, value in expected.items() if found[key] != value
    ]
    if wrong:
        raise UserError(f"data.preprocess.{'; '.join(wrong)}, as {tokenizer.folder} was trained")
    # a refusal comes with the image itself, not from reading every image once before
    return data.model_copy(update={"on_unreadable": "skip"})


def _version() -> str:
    try:
        return metadata.version("smalti")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"


def _claim(output: Path, spec: TokenSpec, overwrite: bool) -> TokenDataset | None:
    """The finished data set if there is one of this spec; None if there is work to do; UserError if neither fits."""
    if not output.exists() or not any(output.iterdir()):
        return None
    written = output / "token_spec.json"
    if not written.is_file():
        raise UserError(f"{output}: is not empty and not a token dataset (no token_spec.json); choose another --output")
    if overwrite:
        return None
    found = read_spec(written)
    complete = (output / "manifest.json").is_file()
    differing = differences(found, spec)
    if complete:
        differing = [line for line in differing if not line.startswith(HARMLESS)]
    if differing:
        raise UserError(
            f"{output}: holds tokens of another spec ({'; '.join(differing[:4])}"
            f"{' …' if len(differing) > 4 else ''}). Choose another --output, or start over with --overwrite"
        )
    if not complete:
        return None
    try:
        return TokenDataset.open(output)
    except UserError:  # a shard was lost or damaged: write it again
        return None


def _prepare_folder(output: Path, spec: TokenSpec, tokenizer_folder: Path, overwrite: bool) -> None:
    """The spec first (it makes the folder ours), then the tokenizer; leftovers of a killed run go."""
    copied = tokenizer_folder.resolve() == (output / "tokenizer").resolve()
    (output / "manifest.json").unlink(missing_ok=True)
    for name in OURS if overwrite else ():
        path = output / name
        if path.is_dir() and not (copied and name == "tokenizer"):
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
    write_json(output / "token_spec.json", spec.model_dump(mode="json"))
    for leftover in (*output.glob(".*.partial*"), *output.glob("*/.*.partial*")):
        leftover.unlink(missing_ok=True)
    planned = {shard.file for s, n in spec.shards.items() for shard in plan(s, spec.source.rows[s], n)}
    for file in output.glob("data/*.parquet"):
        if file.relative_to(output).as_posix() not in planned:
            file.unlink()
    if not copied:
        for name in ("model.safetensors", "README.md", "config.json"):
            write_bytes(output / "tokenizer" / name, (tokenizer_folder / name).read_bytes())


def _complete(
    output: Path, spec: TokenSpec, shards: list[Shard], tokenizer: LoadedTokenizer, datasets: dict[Split, ImageDataset]
) -> None:
    """Hashes, figures, picture and card; the manifest last."""
    splits: dict[Split, ManifestSplit] = {}
    for split, dataset in datasets.items():
        paths = [output / shard.file for shard in shards if shard.split == split]
        entries = tuple(
            ShardEntry(
                file=path.relative_to(output).as_posix(),
                rows=row_count(path),
                bytes=path.stat().st_size,
                sha256=sha256_of(path),
            )
            for path in paths
        )
        skipped = tuple(Skipped(key=key, reason=reason) for path in paths for key, reason in skipped_rows(path))
        entry = ManifestSplit(
            planned=len(dataset), rows=sum(entry.rows for entry in entries), shards=entries, skipped=skipped
        )
        picture = output / "reconstructions.png" if split == next(reversed(datasets)) else None
        stats = split_statistics(output, spec, split, entry, tokenizer.model, dataset, picture)
        splits[split] = entry.model_copy(update={"stats": stats})
    manifest = Manifest(spec_sha256=spec.sha256, digest=digest_of(spec.sha256, splits), splits=splits)
    write_card(output, spec, manifest)
    write_text(output / "manifest.json", json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n")


def _tell(encoded: Encoded, manifest: Manifest) -> None:
    text = f"{encoded.folder}: {encoded.rows:,} rows"
    if encoded.skipped:
        text += f", {encoded.skipped:,} unreadable images left out (named in manifest.json)"
    for name, split in manifest.splits.items():
        if split.stats is not None:
            psnr, health = (
                f"reconstruction {split.stats.psnr_db:.2f} dB",
                f"{split.stats.verdict}: {split.stats.reason}",
            )
            text += f"\n  {name}: {split.rows:,} rows, {psnr}, codebook {health}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _already(complete: TokenDataset, visible: bool) -> Encoded:
    encoded = _encoded(complete.folder, complete.manifest, 0.0, already_complete=True)
    if visible:
        text = f"{complete.folder}: already complete, {encoded.rows:,} rows; nothing to do"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return encoded


def _encoded(folder: Path, manifest: Manifest, rate: float, already_complete: bool) -> Encoded:
    rows = sum(split.rows for split in manifest.splits.values())
    skipped = sum(len(split.skipped) for split in manifest.splits.values())
    return Encoded(folder, rows, skipped, rate, already_complete, manifest.digest)
