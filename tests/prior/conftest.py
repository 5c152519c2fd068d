from collections.abc import Callable

import pytest
import torch

from prior import PriorConfig, TokenPrior, TransformerConfig, Vocabulary
from prior.attention import LayerMasks


@pytest.fixture
def make_prior() -> Callable[..., TokenPrior]:
    """A tiny prior with random weights, sharpened so that its distributions are far from uniform.

    `levels`: the number of codes and the grid of each level, in place of `num_codes` and `grid`.
    `caption`: the condition is a caption of that many positions, out of 8 words.
    `window`: every second layer sees only the condition's first token and so many places up to its own.
    """

    def make(
        grid=(3, 4, 1),
        num_codes=11,
        num_classes=3,
        sharpen=3.0,
        condition_dropout=0.1,
        caption=None,
        window=None,
        levels=None,
        text_weight=1 / 8,
        predict_pads=True,
        **transformer,
    ):
        torch.manual_seed(0)
        levels = levels or [(num_codes, grid)]
        if caption is None:
            vocabulary = Vocabulary.of_labels_and_levels(levels, num_classes)
        else:
            vocabulary = Vocabulary.of_caption_and_levels(levels, num_words=8, caption_length=caption)
        config = PriorConfig(
            vocabulary=vocabulary,
            transformer=TransformerConfig(**{"dim": 32, "depth": 2, "heads": 2, "head_dim": 16} | transformer),
            condition_dropout=condition_dropout,
            text_weight=text_weight,
            predict_pads=predict_pads,
        )
        prior = TokenPrior(config).eval()
        with torch.no_grad():
            for name, parameter in prior.named_parameters():
                if name.endswith(".g"):  # trained gains are not their initial values
                    parameter.normal_(std=0.2)
            prior.network.to_logits.weight.mul_(sharpen)
        if window is not None:
            seen = torch.ones(vocabulary.length - 1, vocabulary.length - 1, dtype=torch.bool).tril().triu(1 - window)
            seen[:, 0] = True
            prior.network.masks = LayerMasks([seen if i % 2 else None for i in range(len(prior.network.blocks))])
        return prior

    return make
