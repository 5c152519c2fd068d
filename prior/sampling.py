"""Drawing images, code by code: `generate_naive` is the reference, `generate` the fast path. They agree.

The code at a position is the most likely one after Gumbel noise has been added, which is a draw from the distribution.
The noise is a function of the image's seed, of the position and of the code alone, so that image i is the same whatever
the batch size, its neighbours and the device (up to the rounding of the logits).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prior.cached_decoder import CachedDecoder
from prior.conditioning import condition_tokens
from prior.logits import SamplingOptions, process_logits
from prior.noise import GumbelNoise
from prior.sequence import check_codes, codes_to_tokens
from prior.token_prior import TokenPrior


@dataclass(frozen=True)
class SamplingRequest:
    """A batch of images to draw, one per seed.

    `condition` holds labels (b,) or longer conditions (b, c); None is the null condition. `kept_codes`
    fixes the first m codes of each image, in the order in which they are drawn, but for those that are -1, which are
    drawn as all later ones are. A draw depends on the codes before it alone, not on kept ones after it. Images that
    begin with the same condition and codes, as the candidates of a caption do, share one pass over them in `generate`.
    """

    seeds: Sequence[int]
    condition: Int[Tensor, "b ..."] | None = None
    options: SamplingOptions = field(default_factory=SamplingOptions)
    kept_codes: Int[Tensor, "b m"] | None = None

    def check(self, prior: TokenPrior) -> None:
        """Raise ValueError for what does not fit the prior or itself."""
        options, length = self.options, prior.vocabulary.code_length
        if options.guided and self.condition is None:
            raise ValueError(f"guidance_scale={options.guidance_scale} needs a condition to guide towards, got none")
        if options.guided and not prior.can_be_guided:
            raise ValueError(
                f"guidance_scale={options.guidance_scale} needs a prior that was trained with condition_dropout > 0, "
                f"this one has condition_dropout={prior.config.condition_dropout}: its null condition was never trained"
            )
        if self.condition is None and prior.vocabulary.conditional and not prior.can_be_guided:
            raise ValueError(
                "this prior needs a condition: it was trained with condition_dropout=0, so that it never saw the null "
                "condition, got none"
            )
        if not len(self.seeds):
            raise ValueError("seeds is empty: one seed per image is needed")
        for seed in self.seeds:
            if not 0 <= seed < 2**64:
                raise ValueError(f"seeds must lie in [0, 2^64), found {seed}")
        if (kept := self.kept_codes) is not None:
            if len(kept) != len(self.seeds) or kept.shape[1] > length:
                found, expected = tuple(kept.shape), f"({len(self.seeds)}, at most {length})"
                raise ValueError(f"kept_codes has the shape {found}, expected {expected}")
            check_codes(kept.masked_fill(kept == -1, 0), prior.vocabulary, "kept_codes")


@dataclass(frozen=True)
class Step:
    """One position of every image, just decided."""

    position: int
    codes: Int[Tensor, " b"]
    logprobs: Float[Tensor, " b"]


@dataclass(frozen=True)
class GenerationOutput:
    """Whole images. `logprobs` are those of the conditional model as trained, in nats: at temperature 1, without
    filters or guidance, so that their sum is the log-likelihood of the image whatever the options; those of kept codes
    included.
    """

    codes: Int[Tensor, " b *axes"]
    logprobs: Float[Tensor, "b n"]


Callback = Callable[[Step], object]


def generate(
    prior: TokenPrior,
    request: SamplingRequest,
    *,
    decoder: CachedDecoder | None = None,
    callback: Callback | None = None,
) -> GenerationOutput:
    """The images of a request, through the cached decode path.

    `decoder` is a `CachedDecoder(prior)` that several calls share; without one, the weights are copied for this call.
    `callback` sees each decided position; without one, nothing waits for the device before the end. Raises ValueError
    for a request or a decoder that does not fit the prior, and when the prior gives logits that are not finite.
    """
    return _collect(prior, stream(prior, request, decoder=decoder), callback)


def generate_naive(
    prior: TokenPrior, request: SamplingRequest, *, callback: Callback | None = None
) -> GenerationOutput:
    """The same images without a cache: each position runs the whole network. Kept as the reference of `generate`."""
    with prior.evaluation_mode():
        return _collect(prior, _steps(_NaiveSource(prior, request), prior, request), callback)


def stream(prior: TokenPrior, request: SamplingRequest, *, decoder: CachedDecoder | None = None) -> Iterator[Step]:
    """`generate`, one position at a time (kept ones too). The request is checked at once."""
    request.check(prior)
    if decoder is not None and not decoder.matches(prior):
        raise ValueError("the decoder was built from another prior, or its weights have changed since")
    return _steps(_CachedSource(prior, request, decoder or CachedDecoder(prior)), prior, request)


class _CachedSource:
    """Logits from the decode path; guidance runs the conditional and the null rows side by side."""

    def __init__(self, prior: TokenPrior, request: SamplingRequest, decoder: CachedDecoder):
        self.prefix, self.decoder = torch.cat(_prefixes(prior, request)), decoder
        self.branches, self.batch = len(self.prefix) // len(request.seeds), 0

    def start(self, prompt: Int[Tensor, "b m"]) -> tuple[Tensor, ...]:
        prompts = torch.cat([self.prefix, prompt.repeat(self.branches, 1)], dim=1)
        distinct, rows = prompts.unique(dim=0, return_inverse=True)
        if len(distinct) == len(prompts):
            distinct, rows = prompts, None
        prefix, codes = distinct.tensor_split([self.prefix.shape[1]], dim=1)
        logits = self.decoder.prefill(prefix, codes, rows)
        self.batch = self.decoder.batch
        return (logits if rows is None else logits.index_select(0, rows)).chunk(self.branches)

    def step(self, codes: Int[Tensor, " b"]) -> tuple[Tensor, ...]:
        if self.decoder.batch != self.batch:
            raise ValueError("the decoder has begun another batch: images that are drawn in turns need a decoder each")
        return self.decoder.step(codes if self.branches == 1 else codes.repeat(self.branches)).chunk(self.branches)


class _NaiveSource:
    """Logits from whole passes of the module, one for each branch of the guidance."""

    def __init__(self, prior: TokenPrior, request: SamplingRequest):
        request.check(prior)
        self.prior, self.prefixes = prior, _prefixes(prior, request)
        axes = prior.vocabulary.code_axes
        self.codes = torch.zeros(len(request.seeds), *axes, dtype=torch.long, device=prior.device)
        self.decided = 0

    def start(self, prompt: Int[Tensor, "b m"]) -> tuple[Tensor, ...]:
        self.decided = prompt.shape[1]
        self.codes.flatten(1)[:, : self.decided] = prompt  # later codes do not matter: the network is causal
        return tuple(self._logits(prefix)[:, : self.decided + 1] for prefix in self.prefixes)

    def step(self, codes: Int[Tensor, " b"]) -> tuple[Tensor, ...]:
        self.codes.flatten(1)[:, self.decided] = codes
        self.decided += 1
        size = self.prior.vocabulary.code_sizes[self.decided]
        return tuple(self._logits(prefix)[:, self.decided, :size] for prefix in self.prefixes)

    def _logits(self, prefix: Tensor) -> Tensor:
        return self.prior.logits(prefix, codes_to_tokens(self.codes, self.prior.vocabulary)[:, :-1])


def _prefixes(prior: TokenPrior, request: SamplingRequest) -> list[Int[Tensor, "b c"]]:
    """The condition of each image and, where guidance needs it, the null condition."""
    conditions = [request.condition, None] if request.options.guided else [request.condition]
    return [condition_tokens(prior.vocabulary, each, len(request.seeds), prior.device) for each in conditions]


@torch.inference_mode()  # while a step is computed, and not in the code that consumes the steps
def _steps(source: _CachedSource | _NaiveSource, prior: TokenPrior, request: SamplingRequest) -> Iterator[Step]:
    length, sizes, options = prior.vocabulary.code_length, prior.vocabulary.code_sizes, request.options
    kept = torch.empty(len(request.seeds), 0) if request.kept_codes is None else request.kept_codes
    kept = kept.to(prior.device, torch.long)
    prompt = kept[:, : _num_kept_first(kept)]
    noise = None
    if options.do_sample:
        noise = GumbelNoise(request.seeds, length, prior.vocabulary.most_codes, prior.device)

    branches = source.start(prompt[:, : length - 1])
    for position, codes in enumerate(prompt.unbind(dim=1)):
        yield Step(position, codes, _logprob(branches[0][:, position], codes))
    branches = tuple(logits[:, -1, : sizes[min(prompt.shape[1], length - 1)]] for logits in branches)
    for position in range(prompt.shape[1], length):
        logits = process_logits(branches[0], options, *branches[1:])
        codes = _most_likely(logits, None if noise is None else noise.at(position)[:, : sizes[position]])
        if position < kept.shape[1]:
            codes = torch.where(kept[:, position] < 0, codes, kept[:, position])
        yield Step(position, codes, _logprob(branches[0], codes))
        if position + 1 < length:
            branches = source.step(codes)


def _num_kept_first(kept: Int[Tensor, "b m"]) -> int:
    """How many positions are kept in every image before the first that is drawn in one: they need a single pass."""
    return int((kept >= 0).all(dim=0).long().cumprod(dim=0).sum())


def _most_likely(logits: Float[Tensor, "b k"], noise: Float[Tensor, "b k"] | None) -> Int[Tensor, " b"]:
    """The most likely code; with Gumbel noise a draw (Gumbel-max). A code of probability 0 is never drawn."""
    if noise is None:
        return logits.argmax(dim=-1)
    # The largest becomes 0: added to a large number, noise would be rounded away. On a CPU max is faster than argmax.
    return (logits - logits.amax(dim=-1, keepdim=True)).add_(noise).max(dim=-1).indices


def _logprob(logits: Float[Tensor, "b k"], codes: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    return logits.float().log_softmax(dim=-1).gather(-1, codes[:, None]).squeeze(-1)


def _collect(prior: TokenPrior, steps: Iterator[Step], callback: Callback | None) -> GenerationOutput:
    codes, logprobs = [], []
    for step in steps:
        codes.append(step.codes)
        logprobs.append(step.logprobs)
        if callback is not None:
            callback(step)
    output = GenerationOutput(
        torch.stack(codes, dim=1).view(-1, *prior.vocabulary.code_axes), torch.stack(logprobs, dim=1)
    )
    if not output.logprobs.isfinite().all():
        raise ValueError("the prior gives logits that are not finite")
    return output
