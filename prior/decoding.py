"""The prior one token at a time: its trained weights, read into a path with a static cache.

Against running the modules with a growing cache (x-transformers): q, k and v come from one product, keys and values
are written in place into buffers of full length (keys already rotated), the gain of each RMSNorm is folded into the
product that follows it, and a step embeds one token. It works in the model's dtype and on its device, autocast or not.
In float32 the logits equal the modules' to about 1e-5; in half precision they agree to that precision only, because the
roundings fall elsewhere. Nothing in a step waits for the device; no shape changes but the length of the cached views.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prior.transformer import TokenPrior


@dataclass(frozen=True)
class Block:
    """Weights of one layer, transposed to (in, out), the layout in which a product with few rows is fastest.

    What shares an input is stacked: on a CPU a batched product then gives each thread a matrix of its own.
    """

    qkv: Float[Tensor, "3 d heads_d"]
    out: Float[Tensor, "heads_d d"]
    up: Float[Tensor, "2 d f"]
    down: Float[Tensor, "f d"]


class StaticDecoder:
    """Decodes `rows` sequences side by side; a snapshot of the prior's weights at construction."""

    @torch.no_grad()
    def __init__(self, prior: TokenPrior, rows: int):
        config, vocabulary, network = prior.config.transformer, prior.vocabulary, prior.network
        self.heads, self.head_dim = config.heads, config.head_dim
        self.length, self.depth = vocabulary.length, vocabulary.depth
        embedding: Tensor = network.token_emb.emb.weight
        self.conditions = embedding[vocabulary.first_label :]
        self.first_condition = vocabulary.first_label
        self.code_tables = embedding[: vocabulary.first_label].split(vocabulary.num_codes)  # position decides depth
        learned = config.positions == "learned"
        self.positions: Tensor | None = network.pos_emb.table() if learned else None
        self.rotation = None if learned else self._rotation(network.attn_layers.rotary_pos_emb.inv_freq)

        layers = list(network.attn_layers.layers)
        self.blocks = [
            self._block(attention_norms[0], attention, feedforward_norms[0], feedforward)
            for (attention_norms, attention, _), (feedforward_norms, feedforward, _) in zip(
                layers[::2], layers[1::2], strict=True
            )
        ]
        self.head = _folded(network.attn_layers.final_norm, network.to_logits.weight)
        shape = (rows, 2, self.heads, self.length, self.head_dim)  # keys and values in one buffer: one write a step
        self.caches = [embedding.new_empty(shape) for _ in self.blocks]
        self.filled = 0

    def prefill(self, prefix: Int[Tensor, "b 1"], codes: Int[Tensor, "b m"]) -> Float[Tensor, "b m+1 k"]:
        """Logits of the first m + 1 codes, given the condition token and the first m codes of each row; starts anew."""
        embedded = [F.embedding(prefix - self.first_condition, self.conditions)]
        if codes.shape[1]:
            depths = torch.arange(codes.shape[1], device=codes.device) % self.depth
            embedded.append(torch.stack(self.code_tables)[depths, codes])
        x = torch.cat(embedded, dim=1)
        self.filled = 0
        logits = self._advance(x.flatten(0, 1), x.shape[1])
        return logits.view(*x.shape[:2], -1)

    def step(self, codes: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Logits of the next code, given the one that was just chosen for each row."""
        return self._advance(F.embedding(codes, self.code_tables[(self.filled - 1) % self.depth]), 1)

    def _advance(self, x: Float[Tensor, "bm d"], tokens: int) -> Float[Tensor, "bm k"]:
        """Run the next `tokens` positions of every row; x is changed in place."""
        start, end = self.filled, self.filled + tokens
        if self.positions is not None:
            x.view(-1, tokens, x.shape[-1]).add_(self.positions[start:end])
        with torch.autocast(x.device.type, enabled=False):
            for block, cache in zip(self.blocks, self.caches, strict=True):
                qkv = torch.bmm(_normalized(x).expand(3, -1, -1), block.qkv)
                qkv = qkv.view(3, -1, tokens, self.heads, self.head_dim).permute(1, 0, 3, 2, 4)
                if self.rotation is not None:
                    self._rotate_(qkv[:, :2], start, end)
                cache[:, :, :, start:end] = qkv[:, 1:]
                attended = F.scaled_dot_product_attention(
                    qkv[:, 0], cache[:, 0, :, :end], cache[:, 1, :, :end], is_causal=tokens > 1
                )
                x.addmm_(attended.transpose(1, 2).reshape(x.shape[0], -1), block.out)
                up, gate = torch.bmm(_normalized(x).expand(2, -1, -1), block.up)
                x.addmm_(F.silu(gate).mul_(up), block.down)
            self.filled = end
            return torch.mm(_normalized(x), self.head)

    def _block(self, attention_norm, attention, feedforward_norm, feedforward) -> Block:
        glu, down = feedforward.ff[0], feedforward.ff[-1]
        qkv = (attention.to_q.weight, attention.to_k.weight, attention.to_v.weight)
        return Block(
            qkv=torch.stack([_folded(attention_norm, weight) for weight in qkv]),
            out=attention.to_out.weight.t().contiguous(),
            up=torch.stack([_folded(feedforward_norm, weight) for weight in glu.proj.weight.chunk(2)]),
            down=down.weight.t().contiguous(),
        )

    def _rotation(self, inverse_frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin of every position, (n, head_dim), pairs interleaved (arXiv 2104.09864 eq. 34)."""
        places = torch.arange(self.length, device=inverse_frequencies.device, dtype=torch.float32)
        angles = torch.outer(places, inverse_frequencies.float()).repeat_interleave(2, dim=-1)
        signs = torch.tensor([-1.0, 1.0], device=angles.device).repeat(self.head_dim // 2)
        return angles.cos().to(inverse_frequencies.dtype), (angles.sin() * signs).to(inverse_frequencies.dtype)

    def _rotate_(self, qk: Float[Tensor, "b 2 h m d"], start: int, end: int) -> None:
        assert self.rotation is not None
        cos, sin = self.rotation
        swapped = qk.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        qk.mul_(cos[start:end]).addcmul_(swapped, sin[start:end])


def _normalized(x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _folded(norm, weight: Float[Tensor, "out d"]) -> Float[Tensor, "d out"]:
    """weight @ (scale * gain * unit vector): what x-transformers' RMSNorm multiplies by moves into the product."""
    gain = (norm.g + float(norm.unit_offset)) * norm.scale
    return (weight * gain).t().contiguous()
