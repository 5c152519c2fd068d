"""A codebook that follows its vectors by moving averages, equal on every rank."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn
from torch.nn.functional import normalize

from tokenizer.bottlenecks.kmeans import draw, kmeans
from tokenizer.bottlenecks.nearest import cluster_sums, nearest


class Quantized(NamedTuple):
    """The vectors of the codes, and the codes."""

    vectors: Float[Tensor, "n d"]
    codes: Int[Tensor, " n"]


class Codebook(nn.Module):
    """K vectors, each the moving average of the vectors assigned to it (VQ-VAE, arXiv 1711.00937, appendix A.1).

    Under several processes (torch.distributed initialised) counts and sums are added over all ranks before anything is
    decided, k-means and restarts draw from the vectors of all ranks, and their outcome is rank 0's everywhere.
    Only a forward in training mode changes a buffer. All arithmetic is float32. Random numbers come of torch's default
    generator. In one process no step waits for the device, except the first (k-means); in several, also restarts do.

    num_codes, dim: K and D.
    decay, eps: of the moving averages, and of the Laplace smoothing of their counts.
    kmeans_init: start from k-means over (at most 64 K) vectors of the first training batch.
    restart_below: every `restart_every` steps, a code whose moving count is lower is put on a vector of the batch.
    distance: with "cosine", vectors handed in must have unit length, and codes are kept so.
    """

    embedding: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    initialised: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        decay: float = 0.99,
        eps: float = 1e-5,
        kmeans_init: bool = True,
        restart_below: float | None = None,
        restart_every: int = 10,
        distance: Literal["euclidean", "cosine"] = "euclidean",
    ):
        super().__init__()
        self.num_codes, self.decay, self.eps = num_codes, decay, eps
        self.restart_below, self.restart_every = restart_below, restart_every
        self.unit_length = distance == "cosine"
        embedding = self._project(torch.randn(num_codes, dim) * dim**-0.5)
        self.register_buffer("embedding", embedding)
        self.register_buffer("ema_count", torch.ones(num_codes))
        self.register_buffer("ema_sum", embedding.clone())
        self.register_buffer("initialised", torch.tensor(not kmeans_init))
        # The flag's Python twin, so that only the steps before initialisation read it from the device.
        self._known_initialised = False
        self.register_load_state_dict_post_hook(_forget_initialised)

    @torch.no_grad()
    def forward(self, vectors: Float[Tensor, "n d"], step: int = 0) -> Quantized:
        """The nearest codes of `vectors` and their embeddings; in training, the codebook then learns from them."""
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            if self.training and not self._known_initialised:
                self._initialise(vectors)
            codes = nearest(vectors, self.embedding)
            quantized = Quantized(self.lookup(codes), codes)
            if self.training:
                self._follow(vectors, codes)
                if self.restart_below is not None and step % self.restart_every == 0:
                    error = (vectors - quantized.vectors).square().sum(1)
                    self._restart(vectors, error, self.restart_below)
        return quantized

    def lookup(self, codes: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """The vectors of `codes`."""
        return nn.functional.embedding(codes, self.embedding)

    def _follow(self, vectors: Float[Tensor, "n d"], codes: Int[Tensor, " n"]) -> None:
        """One step of the moving averages (appendix A.1, equations 6 to 8)."""
        counts, sums = cluster_sums(vectors, codes, self.num_codes)
        if _world_size() > 1:
            both = torch.cat([counts[:, None], sums], dim=1)
            distributed.all_reduce(both)
            counts, sums = both[:, 0], both[:, 1:]
        self.ema_count.lerp_(counts, 1 - self.decay)
        self.ema_sum.lerp_(sums, 1 - self.decay)
        total = self.ema_count.sum()
        smoothed = (self.ema_count + self.eps) / (total + self.num_codes * self.eps) * total
        self.embedding.copy_(self._project(self.ema_sum / smoothed[:, None]))

    def _restart(self, vectors: Float[Tensor, "n d"], error: Float[Tensor, " n"], threshold: float) -> None:
        """Puts codes of a lower count on vectors of the batch, none twice; codes left over wait for their next turn.

        Vectors are drawn in proportion to their squared error, as k-means++ does: half of the patches may be one plain
        ground, which needs no second code. A restarted code gets the threshold as its count, so it must win that many
        vectors a step, and the sum that belongs to it: the old sum would pull it back to where it died.
        """
        dead = self.ema_count < threshold
        pool = _draw_from_all_ranks(vectors, error, self.num_codes)
        turn = dead.cumsum(0) - 1
        chosen = dead & (turn < len(pool))
        fresh = pool[turn.clamp(0, len(pool) - 1)]
        self.embedding.copy_(torch.where(chosen[:, None], fresh, self.embedding))
        self.ema_count.masked_fill_(chosen, threshold)
        self.ema_sum.copy_(torch.where(chosen[:, None], fresh * threshold, self.ema_sum))
        self._share()

    @torch.compiler.disable()
    def _initialise(self, vectors: Float[Tensor, "n d"]) -> None:
        if not self.initialised:
            pool = _draw_from_all_ranks(vectors, torch.ones_like(vectors[:, 0]), 64 * self.num_codes)
            means, counts = kmeans(pool, self.num_codes, unit_length=self.unit_length)
            # As if every batch had looked like this one; a code without vectors counts as one with a single vector.
            count = counts.clamp_min(1) * (len(vectors) * _world_size() / len(pool))
            self.embedding.copy_(means)
            self.ema_count.copy_(count)
            self.ema_sum.copy_(means * count[:, None])
            self._share()
            self.initialised.fill_(True)
        self._known_initialised = True

    def _share(self) -> None:
        """Rank 0's codebook becomes every rank's."""
        if _world_size() > 1:
            for buffer in (self.embedding, self.ema_count, self.ema_sum):
                distributed.broadcast(buffer, src=0)

    def _project(self, vectors: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        return normalize(vectors, dim=-1, eps=1e-6) if self.unit_length else vectors


def _forget_initialised(codebook: Codebook, _: object) -> None:
    codebook._known_initialised = False


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _draw_from_all_ranks(
    vectors: Float[Tensor, "n d"], weights: Float[Tensor, " n"], limit: int
) -> Float[Tensor, "m d"]:
    """Up to `limit` vectors drawn by weight without replacement, as many from each rank, the same on every rank."""
    world = _world_size()
    share = min(len(vectors), -(-limit // world))
    if world > 1:
        smallest = torch.tensor(share, device=vectors.device)
        distributed.all_reduce(smallest, distributed.ReduceOp.MIN)
        share = int(smallest)
    drawn = draw(vectors, weights, share)
    if world == 1:
        return drawn
    gathered = [torch.empty_like(drawn) for _ in range(world)]
    distributed.all_gather(gathered, drawn)
    return torch.stack(gathered, dim=1).flatten(0, 1)  # ranks take turns, so that a prefix draws on all of them
