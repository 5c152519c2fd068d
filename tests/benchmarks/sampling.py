"""Sampling speed against x-transformers' cached `AutoregressiveWrapper.generate`, on the same weights.

    python tests/benchmarks/sampling.py                                          # a small prior on the CPU
    python tests/benchmarks/sampling.py --device cuda --dtype bfloat16 --size 100m --batches 1 8 32 128

Both decode the codes of whole images greedily with the same weights, and in float32 must choose the same codes, unless
two have nearly the same logit: of many thousand draws of random weights a few are such ties. They are timed in
alternation, and the fastest run of each counts. Times are microseconds a step: one more code for every row of the
batch. "sampled" draws codes with top_p 0.95, "guided" adds guidance, which doubles the rows.

The floor on a GPU is the time to read weights and cached keys and values at the bandwidth of a big copy, plus 1.3
microseconds for each kernel of a step, as inside a CUDA graph. On a CPU it is the time to read them, or to do the
multiplications at the speed of a big matrix product, whichever is longer. Bandwidth and speed are measured in the run.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
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
from tests.prior.transformer_wrapper import transformer_wrapper  # noqa: E402

SIZES = {"small": (256, 6), "100m": (768, 14), "300m": (1024, 24)}
"""dim and depth; 5, 99 and 302 million parameters in the blocks."""
OPTIONS = {
    "greedy": SamplingOptions(do_sample=False),
    "sampled": SamplingOptions(top_p=0.95),
    "guided": SamplingOptions(top_p=0.95, guidance_scale=2.0),
}
KERNEL = 1.3e-6
TIE = 1e-5  # of logits of a standard deviation near 1, in float32


def main(arguments: argparse.Namespace, positions: str) -> None:
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    prior = build(arguments, positions).to(device, dtype)
    peer, vocabulary = peer_of(prior), prior.vocabulary
    decoder = CachedDecoder(prior)
    bandwidth, speed = copy_rate(device), product_rate(device, dtype)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"torch {torch.__version__}, {where}, {arguments.dtype}, {positions} positions: "
        f"{sum(p.numel() for p in prior.parameters()) / 1e6:.0f}M parameters, {vocabulary.code_length} codes of "
        f"{vocabulary.most_codes}; copy {bandwidth / 1e9:.0f} GB/s, product {speed / 1e9:.0f} GFLOP/s"
    )
    print("batch  x-transformers   greedy  sampled   guided    floor  greedy / floor  faster by  (us a step)")
    for batch in arguments.batches:
        labels = torch.arange(batch, device=device)
        runs: list[Callable[[], torch.Tensor]] = [lambda labels=labels: peer(labels)]
        for options in OPTIONS.values():
            request = SamplingRequest(range(batch), labels, options)
            runs.append(lambda request=request: generate(prior, request, decoder=decoder).codes.flatten(1))
        expected, found = runs[0](), runs[1]()
        if dtype == torch.float32:
            check_choices(prior, labels, expected, found)
        peer_time, *ours = (1e6 * each / vocabulary.code_length for each in fastest(runs, arguments.repeats, device))
        least = 1e6 * floor(prior, decoder, batch, bandwidth, speed)
        print(
            f"{batch:5d}  {peer_time:14.0f}  {ours[0]:7.0f}  {ours[1]:7.0f}  {ours[2]:7.0f}  {least:7.0f}"
            f"  {ours[0] / least:13.2f}x  {peer_time / ours[0]:8.2f}x",
            flush=True,
        )


def build(arguments: argparse.Namespace, positions: str) -> TokenPrior:
    """A prior with random weights, of the size that was asked for."""
    torch.manual_seed(0)
    dim, depth = SIZES[arguments.size]
    dim, depth = arguments.dim or dim, arguments.depth or depth
    config = {"dim": dim, "depth": depth, "heads": max(1, dim // 64), "positions": positions}
    grid = (arguments.side, arguments.side, 1)
    vocabulary = Vocabulary.of_labels_and_codes(arguments.num_codes, grid, max(arguments.batches))
    return TokenPrior(PriorConfig(vocabulary=vocabulary, transformer=TransformerConfig.model_validate(config))).eval()


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


def fastest(runs: list[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Seconds of the fastest call of each, called in alternation."""
    best = [float("inf")] * len(runs)
    for _ in range(repeats):
        for index, run in enumerate(runs):
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_rate(device: torch.device) -> float:
    """Bytes read and written per second by a copy too big for any cache."""
    source = torch.ones((1024 if device.type == "cuda" else 64) * 2**20, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest([lambda: target.copy_(source)], 5, device)[0]


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of a big matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / fastest([lambda: a @ b], 5, device)[0]


def floor(prior: TokenPrior, decoder: CachedDecoder, batch: int, bandwidth: float, speed: float) -> float:
    """The least seconds of an average step."""
    weights = sum(w.numel() for block in decoder.blocks for w in (block.qkv, block.out, block.up, block.down))
    weights += sum(head.numel() for head in decoder.code_heads)
    config = prior.config.transformer
    cached = batch * config.depth * 2 * config.heads * config.head_dim * decoder.length / 2  # half full on average
    reading = (weights + cached) * decoder.embedding.element_size() / bandwidth
    multiplying = 2 * (weights * batch + cached) / speed
    if prior.device.type == "cuda":
        return max(reading, multiplying) + KERNEL * kernels_per_step(prior, decoder, batch)
    return max(reading, multiplying)


def kernels_per_step(prior: TokenPrior, decoder: CachedDecoder, batch: int) -> int:
    """Kernels of one step of the decoder, as the profiler counts them."""
    codes = torch.zeros(batch, dtype=torch.long, device=prior.device)
    decoder.prefill(condition_tokens(prior.vocabulary, None, batch, prior.device), codes[:, None][:, :0])
    decoder.step(codes)
    synchronize(prior.device)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        decoder.step(codes)
        synchronize(prior.device)
    return sum(event.device_type.name == "CUDA" for event in profile.events() or ())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--dim", type=int, help="instead of that of --size")
    parser.add_argument("--depth", type=int, help="instead of that of --size")
    parser.add_argument("--side", type=int, default=16, help="an image has side x side codes")
    parser.add_argument("--num-codes", type=int, default=1024)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--positions", nargs="+", choices=["learned", "rotary"], default=["learned", "rotary"])
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    for kind in parsed.positions:
        main(parsed, kind)
