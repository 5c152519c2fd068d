"""Means over held-out rows."""

import pytest
import torch

from pipelines.base import distributed
from pipelines.training.collective import Collective
from pipelines.training.validation import mean_figures


def test_every_row_has_the_same_weight_whatever_its_block():
    blocks = [{"error": torch.tensor([1.0, 2.0, 3.0])}, {"error": torch.tensor([10.0])}]
    assert mean_figures(blocks, Collective(distributed.start())) == {"error": pytest.approx(4.0)}
