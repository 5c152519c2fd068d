"""Sampling speed, in four parts (`--parts`, all by default).

    python tests/benchmarks/sampling.py                                          # a small prior on the CPU
    python tests/benchmarks/sampling.py --parts masked --attention dalle1 --batches 8
    python tests/benchmarks/sampling.py --quick                                  # a minute: whether it works
    python tests/benchmarks/sampling.py --device cuda --dtype bfloat16 --size 100m --batches 1 8 32 128

peer: against x-transformers' cached `AutoregressiveWrapper.generate`. Both decode the codes of whole images greedily
with the same weights, and in float32 must choose the same codes, unless two have nearly the same logit: of many
thousand draws of random weights a few are such ties. "sampled" draws codes with top_p 0.95, "guided" adds guidance,
which doubles the rows.

masked: priors whose layers attend to rows, columns or windows, against the same prior with full attention.
x-transformers' generate has one mask for all layers and cannot run them.

candidates: as many candidates of one caption, which share its pass, against as many captions, in one batch each.

draw: what a draw of codes costs beside a greedy step: the most likely code, the inverse of the cumulative distribution
with one uniform a code, and Gumbel noise from a hash, which `generate` uses.

All that is compared is timed in alternation, and the fastest run of each counts. Times are microseconds a step: one
more code for every row of the batch. The floor on a GPU is the time to read weights and the cached keys and values that
the masks show at the bandwidth of a big copy, plus 1.3 microseconds for each kernel of a step, as inside a CUDA graph.
On a CPU it is the time to read them, or to do the multiplications at the speed of a big matrix product, whichever is
longer. Bandwidth and speed are measured in the run.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
warnings.filterwarnings("ignore", message=".*torch.jit.script.*")

from x_transformers import AutoregressiveWrapper  # noqa: E402

from prior import (  # noqa: E402
    CachedDecoder,
    PriorConfig,
    SamplingOptions,
    SamplingRequest,
    TokenPrior,
    TransformerConfig,
    Vocabulary,
    generate,
)
from prior.conditioning import condition_tokens  # noqa: E402
from prior.noise import GumbelNoise  # noqa: E402
from prior.sampling import _most_likely  # noqa: E402
from tests.benchmarks.step_floor import Machine, fastest  # noqa: E402
from tests.prior.transformer_wrapper import transformer_wrapper  # noqa: E402

SIZES = {"small": (256, 6), "100m": (768, 14), "300m": (1024, 24)}
"""dim and depth; 5, 99 and 302 million parameters in the blocks."""
GREEDY = SamplingOptions(do_sample=False)
OPTIONS = {
    "greedy": GREEDY,
    "sampled": SamplingOptions(top_p=0.95),
    "guided": SamplingOptions(top_p=0.95, guidance_scale=2.0),
}
MASKS = ("row", "column", "convolutional", "dalle1")
NUM_WORDS = 1000
TIE = 1e-5  # of logits of a standard deviation near 1, in float32


def peer(arguments: argparse.Namespace, machine: Machine) -> None:
    for positions in arguments.positions:
        prior = build(arguments, positions=positions)
        theirs, decoder, labels = peer_of(prior), CachedDecoder(prior), torch.arange(max(arguments.batches))
        print(f"\npeer, {positions} positions: {described(prior)}")
        print("batch  x-transformers   greedy  sampled   guided    floor  greedy / floor  faster by  (us a step)")
        for batch in arguments.batches:
            given = labels[:batch].to(prior.device)
            runs = [partial(theirs, given)]
            runs += [drawing(prior, decoder, batch, given, options) for options in OPTIONS.values()]
            if arguments.dtype == "float32":
                check_choices(prior, given, runs[0](), runs[1]())
            times = per_step(runs, arguments, prior)
            least = 1e6 * machine.floor(prior, decoder, batch)
            print(
                f"{batch:5d}  {times[0]:14.0f}  {times[1]:7.0f}  {times[2]:7.0f}  {times[3]:7.0f}  {least:7.0f}"
                f"  {times[1] / least:13.2f}x  {times[0] / times[1]:8.2f}x",
                flush=True,
            )


def masked(arguments: argparse.Namespace, machine: Machine) -> None:
    kinds = ["full", *arguments.attention]
    priors = [build(arguments, attention={"kind": kind}) for kind in kinds]
    decoders = [CachedDecoder(prior) for prior in priors]
    print(f"\nmasked: {described(priors[0])}")
    print("batch      attention   greedy    floor  greedy / floor  speed of full attention's  (us a step)")
    for batch in arguments.batches:
        pairs = list(zip(priors, decoders, strict=True))
        labels = torch.arange(batch, device=priors[0].device)
        times = per_step([drawing(*pair, batch, labels, GREEDY) for pair in pairs], arguments, priors[0])
        for kind, pair, found in zip(kinds, pairs, times, strict=True):
            least = 1e6 * machine.floor(*pair, batch)
            ratio = f"{times[0] / found:24.2f}x" if kind != "full" else ""
            print(f"{batch:5d}  {kind:>13}  {found:7.0f}  {least:7.0f}  {found / least:13.2f}x  {ratio}", flush=True)


def candidates(arguments: argparse.Namespace, machine: Machine) -> None:
    prior = build(arguments, caption=arguments.caption)
    decoder, batch = CachedDecoder(prior), arguments.candidates
    captions = torch.randint(0, NUM_WORDS, (batch, arguments.caption), device=prior.device)
    none = torch.empty(batch, 0, dtype=torch.long, device=prior.device)
    one, rows = captions[:1].expand(batch, -1), torch.zeros(batch, dtype=torch.long, device=prior.device)
    print(f"\n{batch} candidates, captions of {arguments.caption} tokens: {described(prior)}")
    passes = [lambda: decoder.prefill(captions, none), lambda: decoder.prefill(captions[:1], none[:1], rows)]
    apart, shared = fastest(passes, arguments.repeats, prior.device)
    print(f"pass over the caption: {1e3 * apart:.1f} ms of {batch} captions, {1e3 * shared:.1f} ms of one")
    for name, options in OPTIONS.items():
        runs = [drawing(prior, decoder, batch, given, options) for given in (captions, one)]
        apart, shared = fastest(runs, arguments.repeats, prior.device)
        print(
            f"{name:>8}: {1e3 * apart:.0f} ms of {batch} captions, {1e3 * shared:.0f} ms of one, faster by "
            f"{apart / shared:.2f}x; {batch / shared:.1f} images a second",
            flush=True,
        )


def draw(arguments: argparse.Namespace, machine: Machine) -> None:
    prior = build(arguments)
    decoder, vocabulary = CachedDecoder(prior), prior.vocabulary
    print(f"\ndraw: {described(prior)}")
    print("batch  greedy step  most likely  inverse  Gumbel  Gumbel over inverse  Gumbel, of a step  (us a step)")
    for batch in arguments.batches:
        labels = torch.arange(batch, device=prior.device)
        logits = torch.randn(batch, vocabulary.most_codes, device=prior.device)
        step = per_step([drawing(prior, decoder, batch, labels, GREEDY)], arguments, prior)[0]
        draws = [choose_all(kind, batch, vocabulary.code_length, logits) for kind in (most_likely, inverse, gumbel)]
        times = per_step(draws, arguments, prior)
        extra = (times[2] - times[1]) / (step - times[0] + times[1])
        print(
            f"{batch:5d}  {step:11.0f}  {times[0]:11.1f}  {times[1]:7.1f}  {times[2]:6.1f}  {extra:19.1%}"
            f"  {times[2] / (step - times[0] + times[2]):17.1%}",
            flush=True,
        )


def most_likely(batch: int, length: int, device: torch.device) -> Callable[[int, torch.Tensor], torch.Tensor]:
    return lambda position, logits: _most_likely(logits, None)


def inverse(batch: int, length: int, device: torch.device) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """The first code whose cumulative mass reaches a uniform number; an image's come from a generator of its own."""
    drawn = [torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in range(batch)]
    uniforms = 1 - torch.stack(drawn, dim=1)[..., None].to(device)

    def choose(position: int, logits: torch.Tensor) -> torch.Tensor:
        probabilities = logits.softmax(dim=-1)
        cumulative = probabilities.cumsum(dim=-1).masked_fill(probabilities == 0, 0)
        reached = cumulative >= uniforms[position] * cumulative.amax(dim=-1, keepdim=True)
        return reached.byte().argmax(dim=-1)

    return choose


def gumbel(batch: int, length: int, device: torch.device) -> Callable[[int, torch.Tensor], torch.Tensor]:
    noise: list[GumbelNoise] = []

    def choose(position: int, logits: torch.Tensor) -> torch.Tensor:
        if not noise:
            noise.append(GumbelNoise(range(batch), length, logits.shape[1], device))
        return _most_likely(logits, noise[0].at(position))

    return choose


def choose_all(kind: Callable[..., Any], batch: int, length: int, logits: torch.Tensor) -> Callable[[], object]:
    """Draws the codes of all positions of a batch, the random numbers included."""

    @torch.inference_mode()
    def run() -> None:
        choose = kind(batch, length, logits.device)
        for position in range(length):
            choose(position, logits)

    return run


def build(arguments: argparse.Namespace, caption: int | None = None, **transformer: Any) -> TokenPrior:
    """A prior with random weights, of the size that was asked for, by label or by captions of so many tokens."""
    torch.manual_seed(0)
    dim, depth = SIZES[arguments.size]
    dim, depth = arguments.dim or dim, arguments.depth or depth
    config = {"dim": dim, "depth": depth, "heads": max(1, dim // 64), **transformer}
    grid = (arguments.side, arguments.side, 1)
    vocabulary = Vocabulary.of_labels_and_codes(arguments.num_codes, grid, max(arguments.batches))
    if caption is not None:
        vocabulary = Vocabulary.of_caption_and_levels([(arguments.num_codes, grid)], NUM_WORDS, caption)
    prior = TokenPrior(PriorConfig(vocabulary=vocabulary, transformer=TransformerConfig.model_validate(config)))
    return prior.eval().to(torch.device(arguments.device), getattr(torch, arguments.dtype))


def drawing(
    prior: TokenPrior, decoder: CachedDecoder, batch: int, condition: torch.Tensor, options: SamplingOptions
) -> Callable[[], torch.Tensor]:
    request = SamplingRequest(range(batch), condition, options)
    return lambda: generate(prior, request, decoder=decoder).codes.flatten(1)


def per_step(runs: list[Callable[[], Any]], arguments: argparse.Namespace, prior: TokenPrior) -> list[float]:
    """Microseconds of a step in the fastest call of each."""
    steps = prior.vocabulary.code_length
    return [1e6 * seconds / steps for seconds in fastest(runs, arguments.repeats, prior.device)]


def described(prior: TokenPrior) -> str:
    millions = sum(p.numel() for p in prior.parameters()) / 1e6
    return f"{millions:.0f}M parameters, {prior.vocabulary.code_length} codes of {prior.vocabulary.most_codes}"


@torch.no_grad()
def peer_of(prior: TokenPrior) -> Callable[[torch.Tensor], torch.Tensor]:
    """x-transformers' cached greedy decoding of whole images, from labels (b,) to codes (b, n).

    It takes the ids that it draws as its next input, so its codes come first among the ids.
    """
    vocabulary, wrapper = prior.vocabulary, transformer_wrapper(prior).to(prior.device, next(prior.parameters()).dtype)
    weight = wrapper.token_emb.emb.weight
    weight.copy_(weight.roll(-vocabulary.condition.num_ids, dims=0))
    autoregressive = AutoregressiveWrapper(wrapper)

    def draw(labels: torch.Tensor) -> torch.Tensor:
        prompt = condition_tokens(vocabulary, labels, len(labels), prior.device) + vocabulary.num_code_ids
        drawn: Any = autoregressive.generate(prompt, vocabulary.code_length, temperature=0.0, cache_kv=True)
        return drawn

    return draw


@torch.no_grad()
def check_choices(prior: TokenPrior, labels: torch.Tensor, expected: torch.Tensor, found: torch.Tensor) -> None:
    """Raises AssertionError where two greedy choices (b, n) differ by more than a tie, at the first code that does."""
    rows = (expected != found).any(1).nonzero()[:, 0]
    for row in rows:
        first = int((expected[row] != found[row]).nonzero()[0, 0])
        logits = prior(expected[row].view(1, *prior.vocabulary.code_axes), labels[row, None])[0, first]
        gap = (logits[expected[row, first]] - logits[found[row, first]]).abs().item()
        print(f"       image {row}: at code {first} two logits differ by {gap:.1e}: a tie")
        assert gap < TIE, f"greedy codes differ at batch {len(expected)}, image {row}, code {first}: {gap:.1e}"


PARTS = {"peer": peer, "masked": masked, "candidates": candidates, "draw": draw}
QUICK = {"side": 8, "batches": [8], "repeats": 1, "candidates": 16, "caption": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="small images, one batch size, one run of each")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--dim", type=int, help="instead of that of --size")
    parser.add_argument("--depth", type=int, help="instead of that of --size")
    parser.add_argument("--side", type=int, default=16, help="an image has side x side codes")
    parser.add_argument("--num-codes", type=int, default=1024)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--caption", type=int, default=64, help="tokens of a caption")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--positions", nargs="+", choices=["learned", "rotary"], default=["learned", "rotary"])
    parser.add_argument("--attention", nargs="+", choices=MASKS, default=MASKS, help="of the part `masked`")
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    machine = Machine.measured(device, getattr(torch, arguments.dtype))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {arguments.threads} threads"
    print(
        f"torch {torch.__version__}, {where}, {arguments.dtype}; copy {machine.bandwidth / 1e9:.0f} GB/s, "
        f"product {machine.speed / 1e9:.0f} GFLOP/s"
    )
    for part in arguments.parts:
        PARTS[part](arguments, machine)


if __name__ == "__main__":
    main()
