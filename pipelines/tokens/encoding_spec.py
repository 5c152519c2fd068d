"""The spec of an encoding: everything that decides its tokens, known before the first image is encoded."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata

import numpy as np
import torch

from pipelines.base.errors import UserError
from pipelines.data import RESOURCES, SPLITS, DataConfig, ImageDataset, Split, open_images
from pipelines.models.checkpoint import LoadedTokenizer
from pipelines.models.token_spec import Compute, Source, TokenizerIdentity, TokenSpec, levels_of, smallest_dtype
from pipelines.tokens.shards import default_shards, plan_shards
from tokenizer import Autoencoder

SAMPLED_ROWS = 16
# Options of a data source that say where its files are or how they are fetched, not which images they hold.
LOCATIONS = ("path", "root", "data_dir", "data_files", "arguments", "download")


def named_splits(splits: Sequence[str]) -> list[Split]:
    """Each split once, in the order train, validation, test. UserError for an unknown name, or for none at all."""
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or not splits:
        raise UserError(f"split: found {', '.join(unknown) or 'none'}, expected {', '.join(SPLITS)}")
    return [split for split in SPLITS if split in splits]


def open_splits(tokenizer: LoadedTokenizer, data: DataConfig, splits: Sequence[str]) -> dict[Split, ImageDataset]:
    """The splits to encode. They skip unreadable images; a refusal comes when an image is read for encoding, so that
    no image is read twice. Whoever reads a row decodes it: several threads read, each with a core of its own.

    Raises:
        UserError: the data is prepared in another way than the tokenizer was trained with, or a split has no images.
    """
    _check_preprocess(tokenizer, data)
    lenient = data.model_copy(update={"on_unreadable": "skip", "workers": 1})
    datasets: dict[Split, ImageDataset] = {split: open_images(lenient, split) for split in named_splits(splits)}
    for split, images in datasets.items():
        if len(images) == 0:
            raise UserError(f"data: split {split!r} has no images; leave it out of the splits to encode")
    return datasets


def _check_preprocess(tokenizer: LoadedTokenizer, data: DataConfig) -> None:
    found, expected = data.preprocess.model_dump(), tokenizer.preprocess.model_dump()
    wrong = [
        f"{key}: found {found[key]!r}, expected {value!r}" for key, value in expected.items() if found[key] != value
    ]
    if wrong:
        raise UserError(f"data.preprocess.{'; '.join(wrong)}, as {tokenizer.folder} was trained")


def build_spec(
    tokenizer: LoadedTokenizer,
    data: DataConfig,
    datasets: Mapping[Split, ImageDataset],
    num_shards: int | None,
    device: torch.device,
) -> TokenSpec:
    """The spec of encoding `datasets` with `tokenizer` into `num_shards` files a split (None: one per 4,096 rows).

    Raises:
        UserError: a continuous tokenizer, or splits that differ in their classes.
    """
    model = tokenizer.model
    identity = tokenizer_identity(tokenizer)
    assert model.num_codes is not None  # tokenizer_identity refuses a continuous tokenizer
    rows: dict[Split, int] = {split: len(images) for split, images in datasets.items()}
    return TokenSpec(
        **levels_of(model.code_grids),
        dtype=smallest_dtype(model.num_codes),
        tokenizer=identity,
        preprocess=tokenizer.preprocess,
        classes=common_classes(datasets),
        has_text=any(images.has_text for images in datasets.values()),
        compute=Compute(
            torch=torch.__version__, device=_device_name(device), batch=compute_batch(model.config.image_size, device)
        ),
        source=Source(
            data=data.model_dump(mode="json", exclude={"preprocess", "augment", *RESOURCES}),
            provenance={split: images.provenance for split, images in datasets.items()},
            rows=rows,
            digests={split: source_digest(data, images) for split, images in datasets.items()},
        ),
        shards={split: len(plan_shards(split, n, num_shards or default_shards(n))) for split, n in rows.items()},
    )


def tokenizer_identity(tokenizer: LoadedTokenizer) -> TokenizerIdentity:
    """Which tokenizer this is. UserError for a continuous one, which has no codes."""
    kind = tokenizer.model.config.bottleneck.kind
    if tokenizer.model.num_codes is None:
        raise UserError(
            f"{tokenizer.folder}: its bottleneck is {kind!r}, which has no codes; "
            "a token dataset needs a discrete one, such as vq or fsq"
        )
    return TokenizerIdentity(
        kind=kind,
        library_version=_version(),
        fingerprint=tokenizer.fingerprint,
        codebook_sha256=codebook_sha256(tokenizer.model),
    )


def codebook_sha256(model: Autoencoder) -> str:
    """Hash of what turns codes into latents: configuration and tensors of the bottleneck that decide codes."""
    digest = hashlib.sha256(json.dumps(model.config.bottleneck.encode_config(), sort_keys=True).encode())
    for name, tensor in sorted(model.bottleneck.encode_state().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def common_classes(datasets: Mapping[Split, ImageDataset]) -> tuple[str, ...] | None:
    """The names of the classes, None where no split has any. UserError where two splits differ."""
    named = {split: images.classes for split, images in datasets.items() if images.classes is not None}
    if not named:
        return None
    first, names = next(iter(named.items()))
    for split, others in named.items():
        if others != names:
            raise UserError(f"data: split {split!r} has classes {others}, split {first!r} has {names}")
    return tuple(names)


def compute_batch(image_size: int, device: torch.device) -> int:
    """Images in every forward pass: a function of the device and the image size, of nothing that a user may change.

    Kernels are chosen by shape and round differently, so that a code that is a near-tie in float32 flips. One shape
    for every pass, the last one padded, makes the tokens of an image independent of the batch size and of the number of
    processes. On a CPU a pass fits the caches of one core: 64 images of 64 x 64 pixels, at most 128 smaller ones. On a
    GPU it takes about an eighth of the memory: 1 KiB a pixel, at most 1,024 images.
    """
    if device.type == "cpu":
        return max(1, min(128, 64**3 // image_size**2))
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 8 * 2**30
    fitting = max(1, memory // 8 // (1024 * image_size**2))
    return min(1024, 2 ** (fitting.bit_length() - 1))


def source_digest(data: DataConfig, images: ImageDataset) -> str:
    """sha256 that tells one set of images from another, wherever it is stored.

    It covers the options that choose rows, columns and binarisation (defaults left out), all rows as they are stored
    (keys, labels, texts, the size and in part the bytes of each image: `ContentDigest`), and prepared pixels of up to
    16 evenly spread rows.
    """
    options = {
        "kind": data.source.kind,
        "source": data.source.model_dump(mode="json", exclude_defaults=True, exclude={*LOCATIONS}),
        "data": data.model_dump(
            mode="json",
            exclude_defaults=True,
            include={"max_pixels", "validation_fraction", "test_fraction", "binarize"},
        ),
        "rows": len(images),
        "content": images.content_digest(),
    }
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    rows = np.unique(np.linspace(0, len(images) - 1, min(SAMPLED_ROWS, len(images))).round().astype(int))
    batch = images.read_batch(rows.tolist(), keep=False)
    facts = [[row.key, row.label, row.text] for row in batch.metadata]
    digest.update(json.dumps([facts, [bad.key for _, bad in batch.unreadable]]).encode())
    digest.update(batch.image.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _version() -> str:
    try:
        return metadata.version("smalti")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"
