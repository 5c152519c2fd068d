"""A distribution over code sequences: vocabulary, transformer, objective, baselines, and sampling."""

from prior.baselines import BaselineBits, UnigramBigram
from prior.decoding import StaticDecoder
from prior.generate import Generated, Step, generate, generate_naive, stream
from prior.logits import SamplingOptions, process
from prior.objective import PriorPhase, sequence_bits, sequence_logprobs
from prior.ranking import most_likely, rank
from prior.sequence import codes_to_tokens, tokens_to_codes
from prior.transformer import PriorConfig, TokenPrior, TransformerConfig
from prior.vocabulary import Vocabulary

__all__ = [
    "BaselineBits",
    "Generated",
    "PriorConfig",
    "PriorPhase",
    "SamplingOptions",
    "StaticDecoder",
    "Step",
    "TokenPrior",
    "TransformerConfig",
    "UnigramBigram",
    "Vocabulary",
    "codes_to_tokens",
    "generate",
    "generate_naive",
    "most_likely",
    "process",
    "rank",
    "sequence_bits",
    "sequence_logprobs",
    "stream",
    "tokens_to_codes",
]
