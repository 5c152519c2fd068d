"""q(z | x) of the continuous family, made by a bottleneck for each batch."""

from tokenizer.posteriors.diagonal_gaussian import DiagonalGaussian
from tokenizer.posteriors.flow_gaussian import FlowGaussian
from tokenizer.posteriors.full_gaussian import FullGaussian

__all__ = ["DiagonalGaussian", "FlowGaussian", "FullGaussian"]
