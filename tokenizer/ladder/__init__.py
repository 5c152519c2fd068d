"""The latent of several levels, each given those above it: top-down network, posterior, and joint prior."""

from tokenizer.ladder.posterior import LadderPosterior
from tokenizer.ladder.prior import LadderPrior
from tokenizer.ladder.top_down import TopDown, gated, layer

__all__ = ["LadderPosterior", "LadderPrior", "TopDown", "gated", "layer"]
