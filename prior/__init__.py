"""A distribution over code sequences: vocabulary, transformer, objective, baselines, and sampling."""

from prior.baselines import BaselineBits, CountBaselines
from prior.cached_decoder import CachedDecoder
from prior.captions import CaptionTokenizer
from prior.completion import (
    choose_candidates,
    effective_candidates,
    importance_log_weights,
    kept_after_a_draw,
)
from prior.logits import SamplingOptions, process_logits
from prior.objective import PriorPhase, sequence_bits, sequence_logprobs
from prior.ranking import likelihood_ratio, most_likely, order_by_likelihood
from prior.sampling import GenerationOutput, SamplingRequest, Step, generate, generate_naive, stream
from prior.sequence import codes_to_tokens, tokens_to_codes
from prior.token_prior import PriorConfig, TokenPrior
from prior.transformer import TransformerConfig
from prior.vocabulary import Segment, Vocabulary

__all__ = [
    "BaselineBits",
    "CachedDecoder",
    "CaptionTokenizer",
    "CountBaselines",
    "GenerationOutput",
    "PriorConfig",
    "PriorPhase",
    "SamplingOptions",
    "SamplingRequest",
    "Segment",
    "Step",
    "TokenPrior",
    "TransformerConfig",
    "Vocabulary",
    "choose_candidates",
    "codes_to_tokens",
    "effective_candidates",
    "generate",
    "generate_naive",
    "importance_log_weights",
    "kept_after_a_draw",
    "likelihood_ratio",
    "most_likely",
    "order_by_likelihood",
    "process_logits",
    "sequence_bits",
    "sequence_logprobs",
    "stream",
    "tokens_to_codes",
]
