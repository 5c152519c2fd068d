"""Images -> token dataset: `smalti encode`. Crash-safe, resumable, the same bytes whatever the number of processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from pipelines.base import distributed
from pipelines.base.first_process import first_process
from pipelines.base.output_folder import OutputFolder
from pipelines.base.process_store import wait_for_all
from pipelines.base.progress import say
from pipelines.data import SPLITS, DataConfig
from pipelines.models.checkpoint import load_tokenizer
from pipelines.models.token_spec import TokenSpec
from pipelines.tokens.completion import complete
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.encoding_spec import build_spec, open_splits
from pipelines.tokens.folder import TOKEN_DATASET, finished_dataset, prepare_folder, tokenizer_files
from pipelines.tokens.manifest import Manifest
from pipelines.tokens.shard_encoder import PassReader, encode_shards, passes_ahead
from pipelines.tokens.shards import finished, plan_shards
from tokenizer import Autoencoder


@dataclass(frozen=True)
class EncodeResult:
    """`rows` of tokens in the folder, `skipped` unreadable images. `rate`: images per second of this call, 0.0 when
    another call had already finished the folder (`already_complete`).
    """

    folder: Path
    rows: int
    skipped: int
    rate: float
    already_complete: bool
    digest: str

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, rate: float = 0.0, already_complete: bool = False) -> "EncodeResult":
        rows = sum(split.rows for split in manifest.splits.values())
        skipped = sum(len(split.skipped) for split in manifest.splits.values())
        return cls(folder, rows, skipped, rate, already_complete, manifest.digest)


def encode(
    tokenizer_folder: str | Path,
    data: DataConfig,
    output: str | Path,
    splits: Sequence[str] = SPLITS,
    num_shards: int | None = None,
    batch_size: int = 256,
    overwrite: bool = False,
) -> EncodeResult:
    """Encode `splits` of a data set into the token dataset `output`; rerun to continue after a crash.

    Images are prepared as the tokenizer was trained (its own `preprocess`), never augmented. `num_shards` files a split
    (default: one per 4,096 rows). `batch_size` bounds the images that are prepared ahead of the network; the network
    itself always sees passes of one size (`compute_batch`), so tokens do not depend on it.

    Raises:
        UserError: continuous tokenizer, another preprocessing than the tokenizer's, an unreadable image where the data
            config refuses them, or an `output` that holds something else and `overwrite` is off.
    """
    folder = OutputFolder(output, TOKEN_DATASET)
    folder.check(overwrite)
    accelerator = distributed.start()
    tokenizer = load_tokenizer(tokenizer_folder, accelerator.device)
    with first_process(accelerator):  # downloads and scans once
        datasets = open_splits(tokenizer, data, splits)
    spec = build_spec(tokenizer, data, datasets, num_shards, accelerator.device)
    ahead = passes_ahead(batch_size, spec.compute.batch)
    found = None if overwrite else finished_dataset(folder.path, spec)
    wait_for_all(accelerator)  # every process has looked before the first one writes
    if found is not None:
        return _already_complete(found, accelerator.is_main_process)

    files = tokenizer_files(tokenizer)
    with folder.begin(overwrite, accelerator):
        with first_process(accelerator) as first:
            if first:
                prepare_folder(folder.path, spec, files)
        read = PassReader(datasets, spec.compute.batch, refuse_unreadable=data.on_unreadable == "refuse")
        rate = _encode_share(tokenizer.model, read, spec, folder.path, ahead, accelerator)
        wait_for_all(accelerator)
        with first_process(accelerator) as first:
            if first:
                complete(folder.path, spec, tokenizer.model, datasets)
        wait_for_all(accelerator)
    manifest = TokenDataset.open(folder.path).manifest
    result = EncodeResult.of(folder.path, manifest, rate)
    if accelerator.is_main_process:
        _print_summary(result, manifest)
    return result


def _encode_share(
    model: Autoencoder, read: PassReader, spec: TokenSpec, output: Path, ahead: int, accelerator: Accelerator
) -> float:
    """Encode this process's shards that are not there yet; returns images per second."""
    shards = [shard for split, n in spec.shards.items() for shard in plan_shards(split, spec.source.rows[split], n)]
    mine = shards[accelerator.process_index :: accelerator.num_processes]
    pending = [shard for shard in mine if not finished(output, spec, shard)]
    done = sum(len(shard.rows) for shard in mine) - sum(len(shard.rows) for shard in pending)
    return encode_shards(model, read, spec, pending, output, ahead, done, accelerator.is_main_process)


def _print_summary(result: EncodeResult, manifest: Manifest) -> None:
    text = f"{result.folder}: {result.rows:,} rows"
    if result.skipped:
        text += f", {result.skipped:,} unreadable images left out (named in manifest.json)"
    for name, split in manifest.splits.items():
        if (stats := split.stats) is not None:
            figures = f"reconstruction {stats.psnr_db:.2f} dB, codebook {stats.verdict}: {stats.reason}"
            text += f"\n  {name}: {split.rows:,} rows, {figures}"
    say(text)


def _already_complete(found: TokenDataset, visible: bool) -> EncodeResult:
    result = EncodeResult.of(found.folder, found.manifest, already_complete=True)
    if visible:
        say(f"{found.folder}: already complete, {result.rows:,} rows; nothing to do")
    return result
