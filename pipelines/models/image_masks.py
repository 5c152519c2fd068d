"""Which pixels of an image are to be redrawn, and which codes stand for them."""

from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.data.image_files import DECODE_ERRORS, open_image, reason
from pipelines.data.preprocess import Preprocess, prepare_image
from tokenizer import CodeGrids, join_codes
from tokenizer.code_grids import marked_positions


def rectangle_mask(rectangles: Sequence[str], size: int) -> Bool[Tensor, "h w"]:
    """The pixels of all rectangles `left,top,right,bottom`, each number in pixels of the prepared image or, with %, a
    share of its side. right and bottom are the first pixels outside; a pixel of which a part is inside is inside.

    Raises:
        UserError: not four such numbers, or a rectangle that is empty or reaches out of the image.
    """
    mask = torch.zeros(size, size, dtype=torch.bool)
    for text in rectangles:
        try:
            left, top, right, bottom = (_pixels(part.strip(), size) for part in text.split(","))
        except ValueError:
            raise UserError(
                f"--redraw: found {text!r}, expected left,top,right,bottom in pixels or in %, such as 0,50%,100%,100%"
            ) from None
        if not (0 <= left < right <= size and 0 <= top < bottom <= size):
            raise UserError(
                f"--redraw: found {text!r}, expected left < right and top < bottom, from 0 to {size} (100%): images "
                f"have {size} x {size} pixels"
            )
        mask[floor(top) : ceil(bottom), floor(left) : ceil(right)] = True
    return mask


def _pixels(text: str, size: int) -> float:
    return float(text[:-1]) * size / 100 if text.endswith("%") else int(text)


def read_mask(path: Path, preprocess: Preprocess, max_pixels: int = 50_000_000) -> Bool[Tensor, "h w"]:
    """A mask in a file: white is redrawn, black is kept.

    Raises:
        UserError: no such file, or no image.
    """
    if not path.is_file():
        raise UserError(f"--mask: {path}: no such file; expected an image, white where it is to be redrawn")
    try:
        return prepare_mask(open_image(path, max_pixels), preprocess)
    except DECODE_ERRORS as error:
        raise UserError(f"--mask: {path}: cannot be read as an image ({reason(error)})") from error


def prepare_mask(mask: Image.Image, preprocess: Preprocess) -> Bool[Tensor, "h w"]:
    """A mask cropped and resized as the images are; True where it is nearer to white than to black. What is
    transparent, and the border of a padded image, is kept.
    """
    grey = preprocess.model_copy(update={"mode": "L", "background": (0, 0, 0)})
    return prepare_image(mask, grey)[0] > 127


def grow_mask(mask: Bool[Tensor, "n h w"], margin: int) -> Bool[Tensor, "n h w"]:
    """The mask and all pixels at most `margin` rows and columns away from it."""
    margin = min(margin, max(mask.shape[1:]))  # no pixel is farther away
    return F.max_pool2d(mask[:, None].float(), 2 * margin + 1, stride=1, padding=margin)[:, 0] > 0


def codes_under(mask: Bool[Tensor, "n h w"], grids: CodeGrids) -> Bool[Tensor, " n *codes"]:
    """The codes of all cells, of every level, that have a pixel in the mask; all quantizers of a cell alike."""
    levels = []
    for grid in grids:
        cells = F.adaptive_max_pool2d(mask[:, None].float(), (grid.rows, grid.columns))[:, 0] > 0
        levels.append(cells[..., None].expand(-1, -1, -1, grid.num_quantizers))
    return join_codes(levels)


def pixels_of(codes: Bool[Tensor, " n *codes"], grids: CodeGrids, size: int) -> Bool[Tensor, "n h w"]:
    """The pixels of all cells of which a code, of any level, is marked."""
    return F.interpolate(marked_positions(codes, grids)[:, None].float(), size=(size, size))[:, 0] > 0
