"""Carving validation and test rows out of the training rows of a data set that lacks them."""

import torch
from jaxtyping import Int64
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.random_streams import permutation
from pipelines.data.dataset import Split


def carve(length: int, fractions: dict[Split, float], split: Split) -> Int64[Tensor, " n"]:
    """Rows of `split`, ascending, where `length` training rows also have to serve the splits named in `fractions`.

    Each of those gets its share (at least one row) of one fixed permutation of the row numbers, training gets the rest.
    The three never overlap, and depend on the length and the fractions only.

    Raises:
        UserError: nothing would be left to train on.
    """
    order = torch.from_numpy(permutation(("carve",), length))
    shares = {name: max(1, round(fraction * length)) for name, fraction in fractions.items()}
    if sum(shares.values()) >= length:
        wanted = ", ".join(f"{name} {share}" for name, share in shares.items())
        raise UserError(f"data: {length} training images cannot be carved into {wanted} and something to train on")
    begin = 0
    for name, share in shares.items():
        if name == split:
            return order[begin : begin + share].sort().values
        begin += share
    return order[begin:].sort().values
