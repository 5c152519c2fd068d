"""x-transformers' own `TransformerWrapper` with the weights of a prior: an independent network of the same function."""

from typing import Any

import torch
from torch import Tensor, nn
from x_transformers import Decoder, TransformerWrapper

from prior import TokenPrior
from prior.transformer import Block


class _Positions(nn.Module):
    """The prior's learned positions, called as x-transformers calls a position embedding."""

    def __init__(self, prior: TokenPrior):
        super().__init__()
        self.table = prior.network.positions.table()  # pyright: ignore[reportOptionalMemberAccess]

    def forward(
        self, x: Tensor, pos: Tensor | None = None, seq_start_pos: Tensor | None = None, offset: int = 0
    ) -> Tensor:
        return self.table[offset : offset + x.shape[1]]


@torch.no_grad()
def transformer_wrapper(prior: TokenPrior) -> Any:
    """A `TransformerWrapper` over the prior's ids that gives logits of the ids of all codes, in evaluation mode."""
    config, network = prior.config.transformer, prior.network
    wrapper: Any = TransformerWrapper(
        num_tokens=prior.vocabulary.size,
        max_seq_len=prior.vocabulary.length - 1,
        logits_dim=prior.vocabulary.num_code_ids,
        use_abs_pos_emb=False,
        attn_layers=Decoder(
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            use_rmsnorm=True,
            rotary_pos_emb=config.positions == "rotary",
            rotary_emb_dim=config.head_dim,
            attn_dim_head=config.head_dim,
            attn_flash=config.flash,
            attn_project_out=True,
            ff_glu=True,
            ff_swish=True,
            ff_mult=(config.ff_dim + 0.5) / config.dim,
            ff_no_bias=True,
            verbose=False,
        ),
    ).to(prior.device)
    wrapper.token_emb.emb.weight.copy_(network.token_embedding.weight)
    wrapper.to_logits.weight.copy_(network.to_logits.weight[-prior.vocabulary.num_code_ids :])
    wrapper.attn_layers.final_norm.g.copy_(network.final_norm.g)
    if network.positions is not None:
        wrapper.pos_emb = _Positions(prior)
        wrapper.can_cache_kv_outside_max_seq_len = False
    layers = wrapper.attn_layers.layers
    for block, attention, feedforward in zip(network.blocks, layers[::2], layers[1::2], strict=True):
        assert isinstance(block, Block)
        attention[0][0].g.copy_(block.attention_norm.g)
        attention[1].load_state_dict(block.attention.state_dict())
        feedforward[0][0].g.copy_(block.feedforward_norm.g)
        weights = block.feedforward.state_dict()
        bias = torch.zeros(len(weights["ff.0.proj.weight"]), device=prior.device)
        feedforward[1].load_state_dict(weights | {"ff.0.proj.bias": bias})
    return wrapper.eval()
