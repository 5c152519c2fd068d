"""One id space for everything the prior reads: the codes of every depth, the labels, and the null condition."""

from pydantic import BaseModel, ConfigDict, PositiveInt


class Vocabulary(BaseModel):
    """The tokens of a prior over (h, w, q) grids of codes in [0, num_codes).

    Ids run: codes of depth 0, codes of depth 1, …, labels, null. The null token is the absent condition and the start
    of the sequence in one: an unconditional prior is one whose condition is always absent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_codes: PositiveInt
    grid: tuple[PositiveInt, PositiveInt, PositiveInt]
    num_classes: PositiveInt | None = None

    @property
    def depth(self) -> int:
        """q, the number of codes in one cell of the grid."""
        return self.grid[2]

    @property
    def length(self) -> int:
        """n = h * w * q, the number of codes of one image."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def first_label(self) -> int:
        return self.depth * self.num_codes

    @property
    def null(self) -> int:
        return self.first_label + (self.num_classes or 0)

    @property
    def size(self) -> int:
        return self.null + 1
