"""torch.compile gives what eager execution gives. In a process of its own, since shape checks cannot be traced."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from tests.tokenizer.members import examples
from tokenizer.bottlenecks import BottleneckConfig, build_bottleneck


def _trained(config) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    bottleneck: Any = build_bottleneck(config, (4, 4))
    h = torch.randn(2, bottleneck.in_channels, 4, 4)
    bottleneck(h + torch.randn_like(h), 0)
    bottleneck.after_step(0)
    return bottleneck, h


def _compare_every_member(_rank):
    torch.set_num_threads(1)
    for config in examples(BottleneckConfig).values():
        torch._dynamo.reset()
        (eager, h), (bottleneck, _) = _trained(config), _trained(config)
        compiled = torch.compile(bottleneck, backend="aot_eager")
        for step in (1, 10):
            torch.manual_seed(step)
            expected = eager(h, step).z
            torch.manual_seed(step)
            torch.testing.assert_close(compiled(h, step).z, expected)
            eager.after_step(step)
            bottleneck.after_step(step)
        torch.testing.assert_close(bottleneck.state_dict(), eager.state_dict())


@pytest.mark.slow
def test_every_bottleneck_compiles():
    spawn(_compare_every_member, nprocs=1)
