"""Every variant of the prior that the option types allow, so that a new one is tested without a list here."""

from typing import get_args

from prior import SamplingOptions, TransformerConfig
from prior.attention import Attention, LayerAttention
from tests.tokenizer.members import examples, small

POSITIONS = get_args(TransformerConfig.model_fields["positions"].annotation)
ATTENTIONS = {config.kind: small(config) for config in examples(Attention).values()}
LAYER_ATTENTIONS = {config.kind: small(config) for config in examples(LayerAttention).values()}
GRIDS = [(3, 4, 1), (2, 3, 2)]
"""One quantizer, and two."""
FLOAT_OPTIONS = [
    name
    for name, field in SamplingOptions.model_fields.items()
    if float in (field.annotation, *get_args(field.annotation))
]
