"""Do samples show what their captions say? The checker of the `composition` data reads every factor from the pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import UInt8
from torch import Tensor

from pipelines.base.distributed import gather, share_of
from pipelines.base.errors import UserError
from pipelines.base.image_grids import to_uint8
from pipelines.base.random_streams import uniforms
from pipelines.data import DataConfig
from pipelines.data.composition import CompositionConfig
from pipelines.data.composition.checker import Reading, read_scenes
from pipelines.data.composition.drawing import PLACES, draw
from pipelines.data.composition.scenes import KINDS, OBJECT, Scene, parse_caption
from pipelines.data.composition.source import is_held_out
from pipelines.evaluate.image_likelihood import Mean, mean_of
from pipelines.evaluate.samples import Samples
from pipelines.models.checkpoint import LoadedTokenizer

Images = UInt8[Tensor, "n 3 size size"]
Reconstruct = Callable[[Images], Images]
IMAGES_AT_ONCE = 250
ALL = "all factors"
EXACT = "token-exact"
SAME = 1  # levels by which two decodings of the same codes may differ: the order of sums depends on the batch


@dataclass(frozen=True)
class Verdict:
    """What is right in an image: each factor of the scene that the `caption` tells, and `ALL` of them. Nothing is where
    the image shows no scene, or one of another kind. `sample` is the image itself. Where its caption has one picture,
    it also has `EXACT`: it is the reconstruction of that picture, pixel by pixel, so it has the codes of the picture.
    `reconstruction`: the same of the reconstructed real picture of the caption.
    """

    caption: str
    scene: str
    held_out: bool
    sample: Mapping[str, bool]
    reconstruction: Mapping[str, bool]

    @property
    def wrong(self) -> list[str]:
        """The factors that the sample does not show."""
        return [name for name, right in self.sample.items() if not right and name not in (ALL, EXACT)]


@dataclass(frozen=True)
class CaptionGroup:
    """Samples whose captions tell one kind of `scene`, either of combinations `held_out` from training or of others:
    the share that shows each factor, and all of them. `reconstructions` are of the real pictures of the same captions:
    no prior can draw what the tokenizer cannot.
    """

    scene: str
    held_out: bool
    images: int
    samples: Mapping[str, Mean]
    reconstructions: Mapping[str, Mean]


@dataclass(frozen=True)
class CaptionAccuracy:
    """The `groups` of the samples; `without_scene` of them have a caption that tells no scene, and are left out."""

    groups: tuple[CaptionGroup, ...]
    without_scene: int


def checks_captions(data: DataConfig) -> bool:
    """Whether captions of this data can be checked by the pixels."""
    return isinstance(data.source, CompositionConfig) and data.preprocess.channels == 3 and data.binarize is None


def reconstruction_by(tokenizer: LoadedTokenizer, device: torch.device | str) -> Reconstruct:
    @torch.no_grad()
    def reconstruct(images: Images) -> Images:
        return to_uint8(tokenizer.model.reconstruct(images.to(device)).cpu())

    return reconstruct


def check_captions(
    samples: Samples, data: DataConfig, reconstruct: Reconstruct, accelerator: Accelerator | None = None
) -> list[Verdict | None]:
    """The verdict of each sample, None where its caption tells no scene. Every process takes its share.

    Raises:
        UserError: the samples have no prompts, or the data is not checked by its pixels.
    """
    if samples.prompts is None or not isinstance(data.source, CompositionConfig):
        raise UserError(f"{samples.folder}: found samples without prompts, expected those of captions of `composition`")
    mine, found = share_of(range(len(samples.files)), accelerator), []
    for start in range(0, len(mine), IMAGES_AT_ONCE):
        part = mine[start : start + IMAGES_AT_ONCE]
        captions = [samples.prompts[row] for row in part]
        found += _verdicts(part, captions, samples.read_images(part), data.source, reconstruct)
    return gather(found, accelerator)


def _verdicts(
    rows: range, captions: Sequence[str], images: Images, config: CompositionConfig, reconstruct: Reconstruct
) -> list[Verdict | None]:
    told = [(place, scene) for place, caption in enumerate(captions) if (scene := parse_caption(caption))]
    if not told:
        return [None] * len(rows)
    places, scenes = [place for place, _ in told], [scene for _, scene in told]
    rebuilt = reconstruct(real_pictures([rows[place] for place in places], scenes, images.shape[-1]))
    same = (rebuilt.int() - images[places].int()).abs().amax((1, 2, 3)) <= SAME
    readings = zip(read_scenes(images[places]), read_scenes(rebuilt), strict=True)
    found: list[Verdict | None] = [None] * len(rows)
    for place, scene, (drawn, possible), exact in zip(places, scenes, readings, same.tolist(), strict=True):
        sample = right_factors(scene, drawn) | ({EXACT: exact} if scene.kind is OBJECT else {})
        held_out = is_held_out(scene, config)
        found[place] = Verdict(captions[place], scene.kind.name, held_out, sample, right_factors(scene, possible))
    return found


def real_pictures(rows: Sequence[int], scenes: Sequence[Scene], size: int) -> Images:
    """Pictures of scenes; `rows` decide where objects stand whose scene does not say so."""
    pictures = torch.empty((len(scenes), 3, size, size), dtype=torch.uint8)
    u = uniforms(("real pictures",), np.array(rows, dtype=np.int64), PLACES**2)
    for kind in KINDS:
        here = [place for place, scene in enumerate(scenes) if scene.kind is kind]
        if here:
            pictures[here] = draw(kind, np.array([scenes[place].values for place in here]), u[here], size)
    return pictures


def right_factors(scene: Scene, reading: Reading) -> dict[str, bool]:
    """Which factors of a scene an image shows, and whether it shows all. A pair is read from the end that fits best."""
    shown = reading.legible and reading.scene.kind is scene.kind
    tellings = [one.factors for one in reading.scene.equivalents] if shown else [{}]
    right = [{name: told.get(name) == word for name, word in scene.factors.items()} for told in tellings]
    best = max(right, key=lambda found: sum(found.values()))
    return best | {ALL: all(best.values())}


def caption_accuracy(verdicts: Sequence[Verdict | None]) -> CaptionAccuracy:
    """The shares of each group: the kinds of scenes in their order, what was never trained on first."""
    told = [verdict for verdict in verdicts if verdict is not None]
    keys = [(kind.name, held_out) for kind in KINDS for held_out in (True, False)]
    groups = {key: [verdict for verdict in told if (verdict.scene, verdict.held_out) == key] for key in keys}
    found = (_group(*key, members) for key, members in groups.items() if members)
    return CaptionAccuracy(tuple(found), len(verdicts) - len(told))


def _group(scene: str, held_out: bool, members: Sequence[Verdict]) -> CaptionGroup:
    samples, rebuilt = ([getattr(one, side) for one in members] for side in ("sample", "reconstruction"))
    return CaptionGroup(scene, held_out, len(members), _shares(samples), _shares(rebuilt))


def _shares(found: Sequence[Mapping[str, bool]]) -> dict[str, Mean]:
    return {name: mean_of(float(one[name]) for one in found) for name in found[0]}
