"""Whether a codebook is used: figures over a window of tokens, never a batch, and a verdict in words."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, distributed

# A window of T tokens shows about K (1 - (1 - 1/K)^T) codes when all are used equally; usage and perplexity are
# compared with that number. The thresholds of collapse are low: in images with a plain background most tokens are the
# background, so that a good codebook may have a perplexity of a few per cent of its size.
COLLAPSED_USAGE = 0.10  # below: VQGAN's 16,384 codes on ImageNet, of which about 6 % are used
COLLAPSED_PERPLEXITY = 0.01
COLLAPSED_EFFECTIVE_CODES = 1.5  # below: nearly one code only, whatever the codebook's size
WEAK_USAGE = 0.60
WEAK_PERPLEXITY = 0.03
WEAK_DUPLICATES = 0.10  # share of the used codes that repeat another
DUPLICATE_DISTANCE = 0.05  # nearer than this share of the median nearest-neighbour distance
SHORT_WINDOW = 10  # tokens per code; a shorter window is named in the reason

Verdict = Literal["healthy", "weak", "collapsed"]


@dataclass(frozen=True)
class CodebookHealth:
    """The state of a codebook over a window.

    usage: share of all codes (of all quantizers) seen at least once.
    perplexity: exp of the entropy of the code frequencies, at most K; the mean over quantizers.
    dead: codes never seen. duplicates: seen codes that nearly repeat another; None if no embedding was given.
    tokens: length of the window, all quantizers counted. counts: (q, K).
    verdict, reason: those of the worst quantizer.
    """

    usage: float
    perplexity: float
    dead: int
    duplicates: int | None
    tokens: int
    verdict: Verdict
    reason: str
    counts: Int[Tensor, "q k"]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, fit for JSON."""
        return asdict(self) | {"counts": self.counts.tolist()}


class CodeUsage:
    """Counts codes over a window of tokens, on `device`."""

    def __init__(self, num_codes: int, num_quantizers: int = 1, device: torch.device | str = "cpu"):
        self.num_codes, self.num_quantizers, self.device = num_codes, num_quantizers, device
        self.reset()

    def reset(self) -> None:
        """Begins a new window."""
        self.counts = torch.zeros(self.num_quantizers, self.num_codes, dtype=torch.long, device=self.device)

    def update(self, codes: Integer[Tensor, "*positions q"]) -> None:
        """Adds codes to the window. ValueError if their last dimension is not num_quantizers."""
        if codes.shape[-1] != self.num_quantizers:
            found = f"codes {tuple(codes.shape)} hold {codes.shape[-1]} per position"
            raise ValueError(f"{found}, expected {self.num_quantizers}")
        offsets = self.num_codes * torch.arange(self.num_quantizers, device=self.device)
        flat = (codes.to(self.device).long() + offsets).flatten()
        self.counts += torch.bincount(flat, minlength=self.counts.numel()).view_as(self.counts)

    def all_reduce(self) -> None:
        """Makes one window of the windows of all ranks; does nothing in a single process."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self.counts)

    def report(self, embedding: Float[Tensor, "*q k d"] | None = None) -> CodebookHealth:
        """The state over the window; duplicates are looked for in `embedding` (K, d) or (q, K, d) if it is given.

        Raises ValueError if the window is empty.
        """
        if not self.counts.any():
            raise ValueError("no token has been seen: the health of a codebook needs a window of tokens")
        counts, q = self.counts.cpu(), self.num_quantizers
        codebooks = [None] * q if embedding is None else list(embedding.view(q, self.num_codes, -1))
        parts = [_Quantizer.of(row, codebook) for row, codebook in zip(counts, codebooks, strict=True)]
        worst = max(range(q), key=lambda i: (SEVERITY.index(parts[i].verdict()[0]), -parts[i].used))
        verdict, reason = parts[worst].verdict()
        return CodebookHealth(
            usage=sum(part.used for part in parts) / counts.numel(),
            perplexity=sum(part.perplexity for part in parts) / q,
            dead=int((counts == 0).sum()),
            duplicates=None if embedding is None else sum(part.duplicates or 0 for part in parts),
            tokens=int(counts.sum()),
            verdict=verdict,
            reason=f"in quantizer {worst + 1} of {q}, {reason}" if q > 1 else reason,
            counts=counts,
        )


@dataclass(frozen=True)
class _Quantizer:
    """The figures of one codebook."""

    num_codes: int
    tokens: int
    used: int
    perplexity: float
    duplicates: int | None

    @classmethod
    def of(cls, counts: Int[Tensor, " k"], embedding: Float[Tensor, "k d"] | None) -> "_Quantizer":
        share = counts[counts > 0].double() / counts.sum()
        perplexity = (-(share * share.log()).sum()).exp().item()
        # Dead codes are counted once, as dead; they are no duplicates.
        duplicates = None if embedding is None else len(near_duplicates(embedding[(counts > 0).to(embedding.device)]))
        return cls(len(counts), int(counts.sum()), len(share), perplexity, duplicates)

    def verdict(self) -> tuple[Verdict, str]:
        reachable = self.num_codes * (1 - (1 - 1 / self.num_codes) ** self.tokens)
        usage, perplexity = self.used / reachable, self.perplexity / reachable
        duplicates = (self.duplicates or 0) / self.used
        used = f"{self.used} of {self.num_codes} codes used"
        effective = f"perplexity {self.perplexity:.1f} of {self.num_codes}"
        if self.tokens < SHORT_WINDOW * self.num_codes:
            used += f" in a short window of {self.tokens} tokens, which could show {reachable:.0f}"
        findings: list[tuple[bool, Verdict, str]] = [
            (usage < COLLAPSED_USAGE, "collapsed", f"{used}, under {COLLAPSED_USAGE:.0%}"),
            (
                self.num_codes > 1 and self.perplexity < COLLAPSED_EFFECTIVE_CODES,
                "collapsed",
                f"{effective}, under {COLLAPSED_EFFECTIVE_CODES}: nearly every token is the same code",
            ),
            (perplexity < COLLAPSED_PERPLEXITY, "collapsed", f"{effective}, under {COLLAPSED_PERPLEXITY:.0%}"),
            (usage < WEAK_USAGE, "weak", f"{used}, under {WEAK_USAGE:.0%}"),
            (perplexity < WEAK_PERPLEXITY, "weak", f"{effective}, under {WEAK_PERPLEXITY:.0%}"),
            (
                duplicates > WEAK_DUPLICATES,
                "weak",
                f"{self.duplicates} of {self.used} used codes nearly repeat another, over {WEAK_DUPLICATES:.0%}",
            ),
        ]
        for found, verdict, reason in findings:
            if found:
                return verdict, reason
        return "healthy", f"{used}, {effective}"


SEVERITY: list[Verdict] = ["healthy", "weak", "collapsed"]


@torch.no_grad()
def near_duplicates(embedding: Float[Tensor, "k d"], rows_at_once: int = 1024) -> Int[Tensor, "pairs 2"]:
    """Codes that nearly repeat an earlier one, each with the nearest such: (code, earlier code), at most K - 1 pairs.

    Near is within DUPLICATE_DISTANCE of the median distance from a code to its nearest neighbour. If more than half of
    the codes have an exact copy the median is zero, and exact copies are what is reported.
    """
    # Centred and in double precision: small differences of large squares would drown in float32.
    vectors = embedding.double() - embedding.double().mean(0)
    norms = vectors.square().sum(1)
    positions = torch.arange(len(vectors), device=vectors.device)
    neighbour = vectors.new_full((len(vectors),), torch.inf)
    earlier, twin = neighbour.clone(), positions.clone()
    for rows in positions.split(rows_at_once):
        squares = norms[rows, None] + norms - 2 * vectors[rows] @ vectors.t()
        squares[positions == rows[:, None]] = torch.inf
        neighbour[rows] = squares.amin(1)
        earlier[rows], twin[rows] = squares.masked_fill(positions > rows[:, None], torch.inf).min(1)
    if len(vectors) < 2:
        return positions.new_zeros(0, 2)
    limit = DUPLICATE_DISTANCE * neighbour.clamp_min(0).sqrt().median()
    rounding = 1e-12 * norms.mean()
    found = earlier <= limit.square() + rounding
    return torch.stack([positions, twin], dim=1)[found]
