"""The prior one token at a time: its trained weights, read into a path with a key-value cache.

Against running the modules with a growing cache (x-transformers): q, k and v come from one product, keys and values
are written in place into buffers of full length (keys already rotated), the gain of each RMSNorm is folded into the
product that follows it, and a step embeds one token. It works in the model's dtype and on its device, autocast or not.
In float32 the logits equal the modules' to about 1e-5; in half precision they agree to that precision only, because the
roundings fall elsewhere. Nothing in a step waits for the device.

There are two modes with the same results. With growing views a step attends to the filled part of the cache, which is
faster on a CPU. With fixed shapes it attends to the whole cache under a row of the mask, and the position is a tensor
on the device: the kernels of all steps that share a level and a quantizer are the same, so that a CUDA graph can
replay them.

A step reads those keys alone that the mask of a layer shows it, where they are few. Rows that begin with the same
prompt share its pass.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prior.attention import attention_bias
from prior.positions import rotary_angles
from prior.sequence import code_offsets
from prior.token_prior import TokenPrior

FEW = 1 / 6  # of all positions. A gathered key is read, written and read again; on average half of the cache is filled.


@dataclass(frozen=True)
class FewKeys:
    """The few places that each position attends to, in order. Rows are filled up with zeros, which are not valid."""

    places: Int[Tensor, "n s"]
    valid: Bool[Tensor, "n s"]
    counts: list[int]

    @classmethod
    def of(cls, allowed: Bool[Tensor, "n n"]) -> "FewKeys | None":
        """None where a position attends to more than `FEW`."""
        counts = allowed.sum(1).tolist()
        if max(counts) > FEW * len(allowed):
            return None
        places = pad_sequence(list(allowed.nonzero()[:, 1].split(counts)), batch_first=True)
        valid = pad_sequence([places.new_ones(count, dtype=torch.bool) for count in counts], batch_first=True)
        return cls(places, valid, counts)


@dataclass(frozen=True, eq=False)
class LayerKeys:
    """The keys that each position attends to; layers with the same mask have the same object."""

    mask: Bool[Tensor, "n n"]
    few: FewKeys | None


@dataclass(frozen=True)
class BlockWeights:
    """Weights of one layer, transposed to (in, out), the layout in which a product with few rows is fastest.

    What shares an input is stacked: on a CPU a batched product then gives each thread a matrix of its own.
    """

    qkv: Float[Tensor, "3 d heads_d"]
    out: Float[Tensor, "heads_d d"]
    up: Float[Tensor, "2 d f"]
    down: Float[Tensor, "f d"]
    keys: LayerKeys | None


class CachedDecoder:
    """Decodes a batch of sequences side by side. It holds a copy of the prior's weights as they are at construction.

    Build it once and use it for every batch: `prefill` starts a new batch, of any size. `fixed_shapes` is on by default
    where the prior is on a CUDA device.
    """

    @torch.no_grad()
    def __init__(self, prior: TokenPrior, fixed_shapes: bool | None = None):
        config, network = prior.config.transformer, prior.network
        self.vocabulary = prior.vocabulary
        self.fixed_shapes = prior.device.type == "cuda" if fixed_shapes is None else fixed_shapes
        self.head_shape = (config.heads, config.head_dim)
        self.length = self.vocabulary.length - 1  # the last code is drawn, never read
        self.embedding = network.token_embedding.weight.detach().clone()
        self.offsets = code_offsets(self.vocabulary, prior.device)
        sizes = list(self.vocabulary.table_sizes)
        self.tables = self.embedding[-self.vocabulary.num_code_ids :].split(sizes)  # of each quantizer of each level
        self.places = self.vocabulary.code_tables  # the table of each position of the codes
        self.positions = None if network.positions is None else network.positions.table().detach()
        self.rotation = self._rotation(prior.device) if network.rotary_dim else None
        self.causal = torch.ones(self.length, self.length, dtype=torch.bool, device=prior.device).tril()
        keys = network.masks.for_layers([LayerKeys(mask, FewKeys.of(mask)) for mask in network.masks.distinct])
        self.blocks = [_block_weights(block, each) for block, each in zip(network.blocks, keys, strict=True)]
        self.keys = list(dict.fromkeys(keys))  # of all layers, each once
        self.code_heads = [_folded(network.final_norm, head) for level in network.code_heads() for head in level]
        self.position = torch.zeros(1, dtype=torch.long, device=prior.device)
        self.caches: list[Tensor] = []
        self.filled = 0
        self.batch = 0  # how many have begun
        self._weights = _identity(prior)

    def matches(self, prior: TokenPrior) -> bool:
        """Whether this prior still has the weights that were copied. Writes through `.data` are not seen."""
        return self._weights == _identity(prior)

    @torch.no_grad()
    def prefill(
        self, prefix: Int[Tensor, "p c"], codes: Int[Tensor, "p m"], rows: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "p m+1 k"]:
        """Logits of the first m + 1 codes, given the ids of each prompt's condition and its first m codes; -inf for
        codes that the level of a position does not have.

        Starts a new batch, of one row for each prompt, or whose rows continue the prompts of these numbers.
        """
        tokens = torch.cat([prefix, codes + self.offsets[: codes.shape[1]]], dim=1)
        prompts, self.filled = tokens.shape
        self.batch += 1
        self._allocate(prompts if rows is None else len(rows))
        caches = self.caches if rows is None else self._buffers(prompts, self.filled)
        x = F.embedding(tokens, self.embedding)
        with torch.autocast(x.device.type, enabled=False):
            hidden = self._advance(x.flatten(0, 1), _Slice(0, self.filled), caches).view(prompts, self.filled, -1)
            logits = self._prompt_logits(hidden[:, prefix.shape[1] - 1 :])
        if rows is not None:
            for cache, shared in zip(self.caches, caches, strict=True):
                cache[:, :, :, : self.filled] = shared.index_select(0, rows)
        self.position.fill_(self.filled)
        return logits

    def _prompt_logits(self, hidden: Float[Tensor, "p m d"]) -> Float[Tensor, "p m k"]:
        """Logits of the first m codes."""
        rows, length, _ = hidden.shape
        logits = hidden.new_full((rows, length, self.vocabulary.most_codes), -torch.inf)
        tables = torch.tensor(self.places[:length])
        for table, head in enumerate(self.code_heads):
            here = (tables == table).nonzero().squeeze(1).to(hidden.device)
            logits[:, here, : head.shape[1]] = hidden[:, here] @ head
        return logits

    @torch.no_grad()
    def step(self, codes: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Logits of the codes that the next position may take, given the one that was just chosen for each row."""
        place = self.filled - self.vocabulary.condition.length  # of these codes
        x = F.embedding(codes, self.tables[self.places[place]])
        with torch.autocast(x.device.type, enabled=False):
            if self.fixed_shapes:
                hidden = self._advance(x, _DevicePosition(self.position, self.causal), self.caches)
                self.position.add_(1)
            else:
                hidden = self._advance(x, _Slice(self.filled, self.filled + 1), self.caches)
            self.filled += 1
            return torch.mm(hidden, self.code_heads[self.places[place + 1]])

    def _advance(
        self, x: Float[Tensor, "bm d"], places: "_Slice | _DevicePosition", caches: list[Tensor]
    ) -> Float[Tensor, "bm d"]:
        """The normalised hidden states of the next positions of every row; x is changed in place."""
        rows = caches[0].shape[0]
        rotation = None if self.rotation is None else [places.rows(table) for table in self.rotation]
        if self.positions is not None:
            x.view(rows, -1, x.shape[-1]).add_(places.rows(self.positions))
        attended = {keys: places.attended(keys, x.dtype) for keys in self.keys}
        for block, cache in zip(self.blocks, caches, strict=True):
            qkv = torch.bmm(_normalized(x).expand(3, -1, -1), block.qkv)
            qkv = qkv.view(3, rows, -1, *self.head_shape).permute(1, 0, 3, 2, 4)
            if rotation is not None:
                _rotate_(qkv[:, :2], *rotation)
            places.write(cache, qkv[:, 1:])
            heads = attended[block.keys].attend(qkv[:, 0], cache)
            x.addmm_(heads.transpose(1, 2).reshape(x.shape[0], -1), block.out)
            up, gate = torch.bmm(_normalized(x).expand(2, -1, -1), block.up)
            x.addmm_(F.silu(gate).mul_(up), block.down)
        return _normalized(x)

    def _allocate(self, rows: int) -> None:
        """Buffers of zeros: an undefined number times a weight of zero may be NaN."""
        if not self.caches or self.caches[0].shape[0] != rows:
            with torch.inference_mode(False):  # a batch outside of inference mode may use them too
                self.caches = self._buffers(rows, self.length)
        elif self.fixed_shapes:
            for cache in self.caches:
                cache.zero_()

    def _buffers(self, rows: int, length: int) -> list[Float[Tensor, "b 2 h n d"]]:
        """Of each layer, keys and values together: one write a step."""
        heads, dim = self.head_shape
        return [self.embedding.new_zeros(rows, 2, heads, length, dim) for _ in self.blocks]

    def _rotation(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and signed sin of every position in float32, (n, head_dim), pairs interleaved."""
        angles = rotary_angles(self.length, self.head_shape[1], device)
        signs = torch.tensor([-1.0, 1.0], device=device).repeat(self.head_shape[1] // 2)
        return angles.cos(), angles.sin() * signs


@dataclass(frozen=True)
class _Attended:
    """What new positions attend to in all layers with one mask: some places of the cache, under a bias."""

    places: slice | Int[Tensor, " s"]
    bias: Float[Tensor, "m s"] | None = None
    is_causal: bool = False

    def attend(self, query: Float[Tensor, "b h m d"], cache: Float[Tensor, "b 2 h n d"]) -> Float[Tensor, "b h m d"]:
        seen = cache[:, :, :, self.places] if isinstance(self.places, slice) else cache.index_select(3, self.places)
        keys, values = seen.unbind(1)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=self.bias, is_causal=self.is_causal)


class _Slice:
    """Positions start to end of every row: views of the cache that grow with them."""

    def __init__(self, start: int, end: int):
        self.start, self.end = start, end

    def rows(self, table: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
        return table[self.start : self.end]

    def write(self, cache: Float[Tensor, "b 2 h n d"], new: Float[Tensor, "b 2 h m d"]) -> None:
        cache[:, :, :, self.start : self.end] = new

    def attended(self, keys: LayerKeys | None, dtype: torch.dtype) -> _Attended:
        single, filled = self.end - self.start == 1, slice(0, self.end)
        if keys is None:  # a single position attends to all that is filled
            return _Attended(filled, is_causal=not single)
        if single and keys.few is not None:
            return _Attended(keys.few.places[self.start, : keys.few.counts[self.start]])
        return _Attended(filled, attention_bias(keys.mask[self.start : self.end, : self.end], dtype))


class _DevicePosition:
    """One position that only the device knows; shapes and kernels do not depend on it."""

    def __init__(self, position: Int[Tensor, "1"], causal: Bool[Tensor, "n n"]):
        self.position, self.causal = position, causal

    def rows(self, table: Float[Tensor, "n d"]) -> Float[Tensor, "1 d"]:
        return table.index_select(0, self.position)

    def write(self, cache: Float[Tensor, "b 2 h n d"], new: Float[Tensor, "b 2 h 1 d"]) -> None:
        cache.index_copy_(3, self.position, new)

    def attended(self, keys: LayerKeys | None, dtype: torch.dtype) -> _Attended:
        if keys is not None and keys.few is not None:
            places = keys.few.places.index_select(0, self.position).squeeze(0)
            return _Attended(places, attention_bias(keys.few.valid.index_select(0, self.position), dtype))
        mask = self.causal if keys is None else keys.mask
        return _Attended(slice(None), attention_bias(mask.index_select(0, self.position), dtype))


def _block_weights(block, keys: LayerKeys | None) -> BlockWeights:
    attention, feedforward = block.attention, block.feedforward
    glu, down = feedforward.ff[0], feedforward.ff[-1]
    qkv = (attention.to_q.weight, attention.to_k.weight, attention.to_v.weight)
    return BlockWeights(
        qkv=torch.stack([_folded(block.attention_norm, weight) for weight in qkv]),
        out=attention.to_out.weight.t().contiguous(),
        up=torch.stack([_folded(block.feedforward_norm, weight) for weight in glu.proj.weight.chunk(2)]),
        down=down.weight.t().contiguous(),
        keys=keys,
    )


def _identity(prior: TokenPrior) -> list[tuple[int, int]]:
    """Where each parameter lies, and how often it has been written to."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in prior.parameters()]


def _rotate_(qk: Float[Tensor, "b 2 h m d"], cos: Float[Tensor, "m d"], sin: Float[Tensor, "m d"]) -> None:
    """Rotate queries and keys in place; computed in float32 whatever their dtype."""
    swapped = qk.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    if qk.dtype == torch.float32:
        qk.mul_(cos).addcmul_(swapped, sin)
    else:
        qk.copy_(qk * cos + swapped * sin)


def _normalized(x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _folded(norm, weight: Float[Tensor, "out d"]) -> Float[Tensor, "d out"]:
    """weight @ (scale * gain * unit vector): what RMSNorm multiplies by moves into the product."""
    gain = (norm.g + float(norm.unit_offset)) * norm.scale
    return (weight * gain).t().contiguous()
