"""Drawing images, code by code: `generate_naive` is the reference, `generate` the fast path. They agree.

One random stream per image: the uniforms of an image are drawn at once from its own CPU generator, so that image i is
the same whatever the batch size, its neighbours and the device (up to the rounding of the logits). The code at a
position is the inverse of the cumulative distribution at that position's uniform: one number per code, not one per
member of the codebook as with Gumbel noise, and a code of probability zero is never chosen.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prior.conditioning import condition_tokens
from prior.decoding import StaticDecoder
from prior.logits import SamplingOptions, process
from prior.sequence import codes_to_tokens, refuse_outside
from prior.transformer import TokenPrior


@dataclass(frozen=True)
class Step:
    """One position of every image, just decided."""

    position: int
    codes: Int[Tensor, " b"]
    logprobs: Float[Tensor, " b"]


@dataclass(frozen=True)
class Generated:
    """Whole images. `logprobs` are those of the conditional model as trained, in nats: at temperature 1, without
    filters or guidance, so that their sum is the log-likelihood of the image whatever the options; prompts included.
    """

    codes: Int[Tensor, "b h w q"]
    logprobs: Float[Tensor, "b n"]


Callback = Callable[[Step], object]
DEFAULTS = SamplingOptions()


def generate(
    prior: TokenPrior,
    labels: Int[Tensor, " b"] | None = None,
    options: SamplingOptions = DEFAULTS,
    seeds: Sequence[int] = (0,),
    *,
    prompt_codes: Int[Tensor, "b n0"] | None = None,
    callback: Callback | None = None,
) -> Generated:
    """One image per seed, through the static-cache decode path.

    `prompt_codes` fixes the first n0 codes of each image in raster order (depth minor). `callback` sees each decided
    position; without one, nothing waits for the device before the end. Raises ValueError for labels or prompts that do
    not fit the seeds or the vocabulary, for no seeds, and for guidance without labels.
    """
    return _collect(prior, stream(prior, labels, options, seeds, prompt_codes=prompt_codes), callback)


def generate_naive(
    prior: TokenPrior,
    labels: Int[Tensor, " b"] | None = None,
    options: SamplingOptions = DEFAULTS,
    seeds: Sequence[int] = (0,),
    *,
    prompt_codes: Int[Tensor, "b n0"] | None = None,
    callback: Callback | None = None,
) -> Generated:
    """The same images without a cache: each position runs the whole network. Kept as the reference of `generate`."""
    with prior.evaluating():
        return _collect(prior, _steps(_NaiveSource, prior, labels, options, seeds, prompt_codes), callback)


def stream(
    prior: TokenPrior,
    labels: Int[Tensor, " b"] | None = None,
    options: SamplingOptions = DEFAULTS,
    seeds: Sequence[int] = (0,),
    *,
    prompt_codes: Int[Tensor, "b n0"] | None = None,
) -> Iterator[Step]:
    """`generate`, one position at a time (those of the prompt too). Arguments are checked on the first step."""
    return _steps(_CachedSource, prior, labels, options, seeds, prompt_codes)


class _CachedSource:
    """Logits from the decode path; guidance runs the conditional and the null rows side by side."""

    def __init__(self, prior: TokenPrior, labels: Tensor | None, images: int, guided: bool):
        prefixes = [condition_tokens(prior.vocabulary, labels, images, prior.device)]
        if guided:
            prefixes.append(condition_tokens(prior.vocabulary, None, images, prior.device))
        self.prefix, self.branches = torch.cat(prefixes), len(prefixes)
        self.decoder = StaticDecoder(prior, len(self.prefix))

    def start(self, prompt: Int[Tensor, "b m"]) -> tuple[Tensor, ...]:
        return self.decoder.prefill(self.prefix, prompt.repeat(self.branches, 1)).chunk(self.branches)

    def step(self, codes: Int[Tensor, " b"]) -> tuple[Tensor, ...]:
        return self.decoder.step(codes if self.branches == 1 else codes.repeat(self.branches)).chunk(self.branches)


class _NaiveSource:
    """Logits from whole passes of the module, one for each branch of the guidance."""

    def __init__(self, prior: TokenPrior, labels: Tensor | None, images: int, guided: bool):
        self.prior, self.conditions = prior, (labels, None) if guided else (labels,)
        self.codes = torch.zeros(images, *prior.vocabulary.grid, dtype=torch.long, device=prior.device)
        self.decided = 0

    def start(self, prompt: Int[Tensor, "b m"]) -> tuple[Tensor, ...]:
        self.decided = prompt.shape[1]
        self.codes.flatten(1)[:, : self.decided] = prompt  # the codes to come do not matter: the network is causal
        return tuple(self._logits(condition)[:, : self.decided + 1] for condition in self.conditions)

    def step(self, codes: Int[Tensor, " b"]) -> tuple[Tensor, ...]:
        self.codes.flatten(1)[:, self.decided] = codes
        self.decided += 1
        return tuple(self._logits(condition)[:, self.decided] for condition in self.conditions)

    def _logits(self, labels: Tensor | None) -> Tensor:
        prefix = condition_tokens(self.prior.vocabulary, labels, len(self.codes), self.codes.device)
        return self.prior.logits(prefix, codes_to_tokens(self.codes, self.prior.vocabulary)[:, :-1])


@torch.inference_mode()  # while a step is computed: it does not leak into the code that consumes them
def _steps(
    source_type: type[_CachedSource] | type[_NaiveSource],
    prior: TokenPrior,
    labels: Tensor | None,
    options: SamplingOptions,
    seeds: Sequence[int],
    prompt_codes: Tensor | None,
) -> Iterator[Step]:
    if options.guided and labels is None:
        raise ValueError(f"guidance_scale={options.guidance_scale} needs labels to guide towards, got none")
    if not seeds:
        raise ValueError("seeds is empty: one seed per image is needed")
    length, images = prior.vocabulary.length, len(seeds)
    prompt = _prompt(prior, prompt_codes, images)
    uniforms = _uniforms(seeds, length).to(prior.device) if options.do_sample else None
    source = source_type(prior, labels, images, options.guided)

    branches = source.start(prompt[:, : length - 1])
    for position, codes in enumerate(prompt.unbind(dim=1)):
        yield Step(position, codes, _logprob(branches[0][:, position], codes))
    branches = tuple(logits[:, -1] for logits in branches)
    for position in range(prompt.shape[1], length):
        codes = _choose(process(branches[0], options, *branches[1:]), uniforms, position)
        yield Step(position, codes, _logprob(branches[0], codes))
        if position + 1 < length:
            branches = source.step(codes)


def _prompt(prior: TokenPrior, prompt_codes: Tensor | None, images: int) -> Int[Tensor, "b n0"]:
    if prompt_codes is None:
        return torch.empty(images, 0, dtype=torch.long, device=prior.device)
    if len(prompt_codes) != images or prompt_codes.shape[1] > prior.vocabulary.length:
        raise ValueError(
            f"prompt_codes has the shape {tuple(prompt_codes.shape)}, "
            f"expected ({images}, at most {prior.vocabulary.length})"
        )
    refuse_outside(prompt_codes, prior.vocabulary.num_codes, "prompt_codes")
    return prompt_codes.to(prior.device, torch.long)


def _uniforms(seeds: Sequence[int], length: int) -> Float[Tensor, "n b 1"]:
    """Uniforms in (0, 1], all of an image's from its own generator, in the order in which they are used."""
    drawn = torch.stack([torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in seeds], dim=1)
    return 1 - drawn[..., None]


def _choose(logits: Float[Tensor, "b k"], uniforms: Float[Tensor, "n b 1"] | None, position: int) -> Int[Tensor, " b"]:
    if uniforms is None:
        return logits.argmax(dim=-1)
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    # the first code whose cumulative mass reaches u * total, 0 < u <= 1: it exists, and its own mass is not zero
    return torch.searchsorted(cumulative, uniforms[position] * cumulative[:, -1:]).squeeze(-1)


def _logprob(logits: Float[Tensor, "b k"], codes: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    return logits.float().log_softmax(dim=-1).gather(-1, codes[:, None]).squeeze(-1)


def _collect(prior: TokenPrior, steps: Iterator[Step], callback: Callback | None) -> Generated:
    codes, logprobs = [], []
    for step in steps:
        codes.append(step.codes)
        logprobs.append(step.logprobs)
        if callback is not None:
            callback(step)
    return Generated(torch.stack(codes, dim=1).view(-1, *prior.vocabulary.grid), torch.stack(logprobs, dim=1))
