"""q(z | x) of the continuous family, made by a bottleneck for each batch."""

from tokenizer.posteriors.diagonal_gaussian import DiagonalGaussian

__all__ = ["DiagonalGaussian"]
