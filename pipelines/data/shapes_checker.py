"""Reading the factors of a `shapes` scene back from pixels, also from blurred, noisy or generated ones.

The ground is the median colour. Every other pixel is explained as so much of one palette colour over the ground; each
colour that covers enough of the image is compared with templates of all shapes and sizes around its centroid.
"""

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data.shapes import CLASSES, COLOURS, GROUNDS, RADII, SHAPES, Scene, SceneObject, coverage

# Agreement (Dice) of an object with its best template below which it is a blob and not a shape. Clean objects agree to
# 0.95 and more, blurred ones (sigma 0.7 at 32 pixels) to 0.9.
LEGIBLE = 0.8
# Area, as a share of the image, below which a colour is a stain and not an object. The smallest true one has 0.03.
STAIN = 0.012
OFFSETS = np.array([(dx, dy) for dx in (-0.5, 0.0, 0.5) for dy in (-0.5, 0.0, 0.5)])  # pixels

_PALETTE = np.array(list(COLOURS.values()), np.float64)
_GROUNDS = np.array(list(GROUNDS.values()), np.float64)


def read_factors(image: UInt8[Tensor, "3 h h"]) -> Scene | None:
    """The scene in an image, objects by falling area; None if something in it is no shape, or nothing is."""
    pixels = image.numpy().reshape(3, -1).astype(np.float64).T
    size = image.shape[-1]
    ground = np.median(pixels, axis=0)
    colour, strength = _explain(pixels - ground, _PALETTE - ground)
    found: list[tuple[float, SceneObject]] = []
    for index, name in enumerate(COLOURS):
        share = np.where((colour == index) & (strength > 0.25), strength, 0).reshape(size, size)
        if share[share > 0.5].sum() < STAIN * size * size:
            continue
        shape, scale, x, y, agreement = _match(share, size)
        if agreement < LEGIBLE:
            return None
        found.append((float(share.sum()), SceneObject(shape, name, scale, round(x, 4), round(y, 4))))
    if not found:
        return None
    found.sort(key=lambda pair: -pair[0])
    nearest = int(np.argmin(((_GROUNDS - ground) ** 2).sum(1)))
    return Scene(tuple(GROUNDS)[nearest], tuple(thing for _, thing in found))


def _explain(
    difference: NDArray[np.float64], directions: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each pixel's difference from the ground (p, 3): the colour whose mixture with the ground lies nearest, and
    its share of the mixture.
    """
    share = np.clip(difference @ directions.T / (directions**2).sum(1), 0, 1)
    error = ((difference[:, None] - share[..., None] * directions) ** 2).sum(-1)
    colour = error.argmin(1)
    return colour, share[np.arange(len(share)), colour]


def _match(share: NDArray[np.float64], size: int) -> tuple[str, str, float, float, float]:
    """Shape, size, centre and Dice agreement of the best template."""
    weight = np.where(share > 0.3, share, 0)
    grid = (np.arange(size) + 0.5) / size
    centre = np.array([weight.sum(0) @ grid, weight.sum(1) @ grid]) / weight.sum()
    centres = centre + OFFSETS / size
    x, y = np.moveaxis((grid[:, None] - centres[:, None]).astype(np.float32) * size, -1, 0)
    blur = _blur(size)
    best = ("", "", 0.0, 0.0, -1.0)
    for shape, name in enumerate(SHAPES):
        for scale, radius in RADII.items():
            sharp = coverage(shape, np.full(len(centres), radius * size, np.float32), x, y)
            templates = np.concatenate([sharp, blur @ sharp @ blur])
            agreement = 2 * (templates * share).sum((1, 2)) / ((templates**2).sum((1, 2)) + (share**2).sum())
            top = int(agreement.argmax())
            if agreement[top] > best[4]:
                at = centres[top % len(centres)]
                best = (name, scale, float(at[0]), float(at[1]), float(agreement[top]))
    return best


def _blur(size: int) -> NDArray[np.float64]:
    """Gaussian of one pixel along one axis, as a (size, size) matrix: decoders rarely draw a sharp edge."""
    grid = np.arange(size)
    kernel = np.exp(-0.5 * (grid[:, None] - grid) ** 2.0)
    return kernel / kernel.sum(1, keepdims=True)


def label_of(image: UInt8[Tensor, "3 h h"]) -> int | None:
    """Class of the larger object (an index into CLASSES); None where the image is no scene of one or two shapes."""
    scene = read_factors(image)
    return None if scene is None or len(scene.objects) > 2 else scene.label


def obeys_label(image: UInt8[Tensor, "3 h h"], label: int | str) -> bool:
    """Whether the image shows what its label says. `label` is an index into CLASSES or one of its names.

    Raises:
        ValueError: there is no such class.
    """
    wanted = CLASSES.index(label) if isinstance(label, str) else range(len(CLASSES)).index(label)
    return label_of(image) == wanted
