from collections.abc import Callable

import pytest
import torch

from prior import PriorConfig, TokenPrior, TransformerConfig, Vocabulary


@pytest.fixture
def make_prior() -> Callable[..., TokenPrior]:
    """A tiny prior with random weights, sharpened so that its distributions are far from uniform."""

    def make(grid=(3, 4, 1), num_codes=11, num_classes=3, sharpen=3.0, condition_dropout=0.1, **transformer):
        torch.manual_seed(0)
        config = PriorConfig(
            vocabulary=Vocabulary.of_labels_and_codes(num_codes, grid, num_classes),
            transformer=TransformerConfig(**{"dim": 32, "depth": 2, "heads": 2, "head_dim": 16} | transformer),
            condition_dropout=condition_dropout,
        )
        prior = TokenPrior(config).eval()
        with torch.no_grad():
            for name, parameter in prior.named_parameters():
                if name.endswith(".g"):  # trained gains are not their initial values
                    parameter.normal_(std=0.2)
            prior.network.to_logits.weight.mul_(sharpen)
        return prior

    return make
