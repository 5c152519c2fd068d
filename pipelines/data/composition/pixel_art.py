"""The shapes of the `composition` data as pixel art, pointing up, at the sides of 12, 8, 6 and 4 cells.

Few different patterns of 2 x 2 cells make up all pictures, so that a small tokenizer can learn them exactly.
"""

import numpy as np
from numpy.typing import NDArray

from pipelines.data.composition.scenes import SHAPES

# In the order of SHAPES: arrow, triangle, heart, crown, house, T.
ART = (
    """
    .....##.....  .....##.....  .....##.....  ##...##...##  .....##.....  ...######...
    ....####....  .....##.....  ....####....  ##...##...##  ....####....  ...######...
    ...######...  ....####....  ...######...  ###.####.###  ...######...  ...######...
    ..########..  ....####....  ..########..  ###.####.###  ..########..  ...######...
    .##########.  ...######...  .##########.  ############  .##########.  ...######...
    ############  ...######...  ############  ############  ############  ...######...
    ...######...  ..########..  ############  ############  ############  ############
    ...######...  ..########..  ############  ############  ############  ############
    ...######...  .##########.  ############  ############  ############  ############
    ...######...  .##########.  #####..#####  ############  ############  ############
    ...######...  ############  .####..####.  ############  ############  ############
    ...######...  ############  ..##....##..  ############  ############  ############
    """,
    """
    ...##...      ...##...      ...##...      #..##..#      ...##...      ..####..
    ..####..      ...##...      ..####..      #..##..#      ..####..      ..####..
    .######.      ..####..      .######.      ########      .######.      ..####..
    ########      ..####..      ########      ########      ########      ..####..
    ..####..      .######.      ########      ########      ########      ########
    ..####..      .######.      ########      ########      ########      ########
    ..####..      ########      ########      ########      ########      ########
    ..####..      ########      .##..##.      ########      ########      ########
    """,
    """
    ..##..        ..##..        ..##..        #.##.#        ..##..        ..##..
    .####.        ..##..        .####.        #.##.#        .####.        ..##..
    ######        .####.        ######        ######        ######        ..##..
    ..##..        .####.        ######        ######        ######        ..##..
    ..##..        ######        ######        ######        ######        ######
    ..##..        ######        ##..##        ######        ######        ######
    """,
    """
    .##.          .##.          .##.          #..#          .##.          .##.
    ####          .##.          ####          #..#          ####          .##.
    .##.          ####          ####          ####          ####          .##.
    .##.          ####          #..#          ####          ####          ####
    """,
)
GAP = 0.3  # the colour's share between stripes: the shape is seen all the same

Cover = NDArray[np.float32]  # the share of each cell that an object covers


def _read(art: str) -> NDArray[np.bool_]:
    rows = [line.split() for line in art.strip().splitlines()]
    return np.array([[[cell == "#" for cell in row[shape]] for row in rows] for shape in range(len(SHAPES))])


SOLID = {found.shape[-1]: found for found in map(_read, ART)}  # by side: (shapes, side, side)


def filled(side: int, fill: str) -> Cover:
    """(shapes, side, side) of objects that point up."""
    solid = SOLID[side]
    match fill:
        case "solid":
            return solid.astype(np.float32)
        case "outlined":
            around = np.pad(solid, ((0, 0), (1, 1), (1, 1)))
            neighbours = [around[:, y : y + side, x : x + side] for y in range(3) for x in range(3)]
            return (solid & ~np.logical_and.reduce(neighbours)).astype(np.float32)
        case _:
            rows = np.where(np.arange(side) % 2, 1.0, GAP).astype(np.float32)
            return solid * rows[:, None]


def turned(up: Cover, quarters: int) -> Cover:
    """Objects (…, side, side) after so many clockwise quarter turns."""
    return np.rot90(up, -quarters, axes=(-2, -1))
