"""The quantizers of one grid of codes. A new one is a file, one line in the union, and a `case`."""

from tokenizer.bottlenecks.contract import Quantizer
from tokenizer.bottlenecks.fsq import FSQ, FSQConfig
from tokenizer.bottlenecks.gumbel import Gumbel, GumbelConfig
from tokenizer.bottlenecks.lfq import LFQ, LFQConfig
from tokenizer.bottlenecks.vq import VQ, VQConfig

QuantizerConfig = VQConfig | FSQConfig | LFQConfig | GumbelConfig


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The module that `config` describes."""
    match config:
        case VQConfig():
            return VQ(config)
        case FSQConfig():
            return FSQ(config)
        case LFQConfig():
            return LFQ(config)
        case GumbelConfig():
            return Gumbel(config)
