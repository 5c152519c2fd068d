"""A codebook that follows its vectors by moving averages, equal on every rank."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, distributed, nn
from torch.nn.functional import normalize

from tokenizer.bottlenecks.kmeans import kmeans, sampling_keys, weighted_sample
from tokenizer.bottlenecks.nearest import nearest


class QuantizerOutput(NamedTuple):
    """The vectors of the codes, the codes, and in training how many of the vectors handed in were not finite."""

    vectors: Float[Tensor, "n d"]
    codes: Int[Tensor, " n"]
    nonfinite: Float[Tensor, ""] | None = None


def _not_compiled(method: Callable[..., None]) -> Callable[..., None]:
    """`torch.compiler.disable` at the first call: at import it would load the compiler, which takes over a second."""

    @wraps(method)
    def call(*arguments: Any) -> None:
        torch.compiler.disable(method)(*arguments)

    return call


class Codebook(nn.Module):
    """K vectors, each the moving average of the vectors assigned to it (VQ-VAE, arXiv 1711.00937, appendix A.1).

    A forward in training mode collects counts, sums and, when restarts are due, vectors to restart codes from; it
    leaves the codebook as it is. `after_step` then learns from all that was collected since the last call. So a batch
    in several parts teaches the codebook what the whole batch would (k-means alone sees the first part only).

    Under several processes (torch.distributed initialised) counts and sums are added over all ranks before anything is
    decided, k-means and restarts sample the vectors of all ranks, and their outcome is rank 0's everywhere. Vectors
    with a number that is not finite get some code and are never learned from. All arithmetic is float32. Random numbers
    come from torch's default generator. No step waits for the device, except the first (k-means).

    num_codes, dim: K and D.
    decay, eps: of the moving averages, and of the Laplace smoothing of their counts.
    kmeans_init: start from k-means over (at most 64 K) vectors of the first training batch.
    dead_code_threshold: every `restart_every` steps, a code whose moving count is lower is put on a vector of the step.
    distance: with "cosine", vectors handed in must have unit length, and codes are kept so.
    """

    embedding: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    initialised: Tensor
    step_count: Tensor
    step_sum: Tensor
    candidate_keys: Tensor
    candidates: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        decay: float = 0.99,
        eps: float = 1e-5,
        kmeans_init: bool = True,
        dead_code_threshold: float | None = None,
        restart_every: int = 10,
        distance: Literal["euclidean", "cosine"] = "euclidean",
    ):
        super().__init__()
        self.num_codes, self.decay, self.eps = num_codes, decay, eps
        self.dead_code_threshold, self.restart_every = dead_code_threshold, restart_every
        self.unit_length = distance == "cosine"
        embedding = self._project(torch.randn(num_codes, dim) * dim**-0.5)
        self.register_buffer("embedding", embedding)
        self.register_buffer("ema_count", torch.ones(num_codes))
        self.register_buffer("ema_sum", embedding.clone())
        self.register_buffer("initialised", torch.tensor(not kmeans_init))
        # What this step has collected. The last row gathers the vectors that are not finite.
        self.register_buffer("step_count", torch.zeros(num_codes + 1), persistent=False)
        self.register_buffer("step_sum", torch.zeros(num_codes + 1, dim), persistent=False)
        slots = 0 if dead_code_threshold is None else num_codes
        self.register_buffer("candidate_keys", torch.zeros(slots), persistent=False)
        self.register_buffer("candidates", torch.zeros(slots, dim), persistent=False)
        self._collected = self._restart_due = False
        # The flag's Python twin, so that only the steps before initialisation read it from the device.
        self._known_initialised = False
        self.register_load_state_dict_post_hook(_forget_initialised)

    @torch.no_grad()
    def forward(self, vectors: Float[Tensor, "n d"], step: int = 0) -> QuantizerOutput:
        """The nearest codes of `vectors` and their embeddings; in training, `after_step` will learn from them."""
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            if self.training and not self._known_initialised:
                self._initialise(vectors)
            codes = nearest(vectors, self.embedding.float())
            quantized = self.lookup(codes)
            nonfinite = self._collect(vectors, codes, quantized, step) if self.training else None
        return QuantizerOutput(quantized, codes, nonfinite)

    @torch.no_grad()
    def after_step(self) -> None:
        """Learns from all vectors that forwards in training mode have seen since the last call."""
        if not self._collected:
            return
        self._update_averages()
        if self._restart_due and self.dead_code_threshold is not None:
            self._restart(self.dead_code_threshold)
        for buffer in (self.step_count, self.step_sum, self.candidate_keys):
            buffer.zero_()
        self._collected = self._restart_due = False

    def lookup(self, codes: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """The vectors of `codes`, float32."""
        return nn.functional.embedding(codes, self.embedding).float()

    def _collect(
        self, vectors: Float[Tensor, "n d"], codes: Int[Tensor, " n"], quantized: Float[Tensor, "n d"], step: int
    ) -> Float[Tensor, ""]:
        """Adds a batch to what this step has seen; returns how many of its vectors are not finite."""
        finite = _finite(vectors)
        rows = torch.where(finite, codes, self.num_codes)
        # index_add rather than bincount for the counts: on a GPU bincount waits for the device.
        self.step_count.index_add_(0, rows, vectors.new_ones(len(rows)))
        self.step_sum.index_add_(0, rows, vectors)
        self._collected = True
        if self.dead_code_threshold is not None and step % self.restart_every == 0:
            error = (vectors - quantized).square().sum(1)
            self._collect_candidates(vectors, torch.where(finite, error, 0))
            self._restart_due = True
        return (~finite).sum().float()

    def _collect_candidates(self, vectors: Float[Tensor, "n d"], error: Float[Tensor, " n"]) -> None:
        """Keeps the K vectors with the largest keys: a sample by weight of all that this step has seen."""
        keys = sampling_keys(error)
        best = keys.topk(min(self.num_codes, len(keys)))
        merged = torch.cat([self.candidate_keys, best.values]).topk(self.num_codes)
        self.candidates.copy_(torch.cat([self.candidates, vectors[best.indices]])[merged.indices])
        self.candidate_keys.copy_(merged.values)

    def _update_averages(self) -> None:
        """One step of the moving averages (appendix A.1, equations 6 to 8)."""
        counts, sums = self.step_count[:-1], self.step_sum[:-1]
        if _world_size() > 1:
            both = torch.cat([counts[:, None], sums], dim=1)
            distributed.all_reduce(both)
            counts, sums = both[:, 0], both[:, 1:]
        self.ema_count.lerp_(counts, 1 - self.decay)
        self.ema_sum.lerp_(sums, 1 - self.decay)
        total = self.ema_count.sum()
        smoothed = (self.ema_count + self.eps) / (total + self.num_codes * self.eps) * total
        self.embedding.copy_(self._project(self.ema_sum / smoothed[:, None]))

    def _restart(self, threshold: float) -> None:
        """Puts codes of a lower count on vectors of the step, none twice; codes left over wait for their next turn.

        Vectors are sampled in proportion to their squared error, as in k-means++: half of the patches may be one plain
        background, which needs no second code. A restarted code gets the threshold as its count, so it must win that
        many vectors a step, and the sum that belongs to it: the old sum would pull it back to where it died.
        """
        dead = self.ema_count < threshold
        fresh, available = self._candidates_of_all_ranks()
        turn = dead.cumsum(0) - 1
        chosen = dead & (turn < available)
        fresh = fresh[turn.clamp_min(0)]
        self.embedding.copy_(torch.where(chosen[:, None], fresh, self.embedding))
        self.ema_count.masked_fill_(chosen, threshold)
        self.ema_sum.copy_(torch.where(chosen[:, None], fresh * threshold, self.ema_sum))
        self._share()

    def _candidates_of_all_ranks(self) -> tuple[Float[Tensor, "k d"], Int[Tensor, ""]]:
        """K candidates, those sampled first, and how many of them are real. An equal share comes from each rank."""
        keys, vectors = self.candidate_keys, self.candidates
        if (world := _world_size()) > 1:
            share = -(-self.num_codes // world)  # keys are in falling order: these were sampled first
            both = _gather(torch.cat([keys[:share, None], vectors[:share]], dim=1))
            keys, vectors = both[:, 0], both[:, 1:]
            order = keys.topk(self.num_codes).indices
            keys, vectors = keys[order], vectors[order]
        return vectors, (keys > 0).sum()

    @_not_compiled
    def _initialise(self, vectors: Float[Tensor, "n d"]) -> None:
        """k-means over a sample of all ranks; waits for a batch that has a finite vector."""
        if not self.initialised:
            pool, total = _sample_of_all_ranks(vectors[_finite(vectors)], 64 * self.num_codes)
            if not len(pool):
                return
            means, counts = kmeans(pool, self.num_codes, unit_length=self.unit_length)
            # As if every batch had looked like this one; a code without vectors counts as one with a single vector.
            count = counts.clamp_min(1) * (total / len(pool))
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


def _finite(vectors: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
    """Where the squared length is finite: distances to any other vector would be nothing to learn from."""
    return torch.linalg.vector_norm(vectors, dim=1).isfinite()


def _gather(rows: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
    """The rows of all ranks, equally many from each, in the order of the ranks."""
    gathered = [torch.empty_like(rows) for _ in range(_world_size())]
    distributed.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def _sample_of_all_ranks(vectors: Float[Tensor, "n d"], limit: int) -> tuple[Float[Tensor, "m d"], int]:
    """Up to `limit` vectors, at most an equal share from each rank, the same on every rank; and how many there are.

    `vectors` are finite; ranks may hold different numbers of them.
    """
    world = _world_size()
    share = -(-limit // world)
    sample = weighted_sample(vectors, vectors.new_ones(len(vectors)), share)
    if world == 1:
        return sample, len(vectors)
    total = torch.tensor(len(vectors), device=vectors.device)
    distributed.all_reduce(total)
    padded = vectors.new_full((share, vectors.shape[1]), torch.nan)
    padded[: len(sample)] = sample
    pool = _gather(padded)
    return pool[_finite(pool)], int(total)
