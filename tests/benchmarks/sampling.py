"""Sampling speed against x-transformers' cached `AutoregressiveWrapper.generate`, on the same weights.

    python tests/benchmarks/sampling.py [--repeats 3] [--threads 2] [--positions learned rotary]

Both decode 256 tokens greedily with the very same network, and must choose the same tokens. They are timed in
alternation, and the fastest run of each counts. The bound is the time a step would take if it did nothing but read its
weights and cached keys and values at the speed of a big copy, or nothing but its multiplications at the speed of a big
matrix product, whichever is longer, both measured in the same run. What stays in a cache is read faster than that.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
warnings.filterwarnings("ignore", message=".*torch.jit.script.*")

from x_transformers import AutoregressiveWrapper  # noqa: E402

from prior import (  # noqa: E402
    PriorConfig,
    SamplingOptions,
    StaticDecoder,
    TokenPrior,
    TransformerConfig,
    Vocabulary,
    generate,
)
from prior.conditioning import condition_tokens  # noqa: E402

GOALS = {1: 2.2, 8: 3.5, 32: 4.0}
GREEDY = SamplingOptions(do_sample=False)


def main(repeats: int, threads: int, positions: str) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    vocabulary = Vocabulary(num_codes=1024, grid=(16, 16, 1), num_classes=max(GOALS))
    transformer = TransformerConfig.model_validate({"dim": 256, "depth": 6, "positions": positions})
    prior = TokenPrior(PriorConfig(vocabulary=vocabulary, transformer=transformer)).eval()
    peer = AutoregressiveWrapper(prior.network)
    copied, multiplied = copy_rate(), product_rate()
    print(
        f"torch {torch.__version__}, {threads} threads, dim 256, depth 6, 256 tokens, 1024 codes, {positions} positions"
    )
    print(f"big copy {copied / 1e9:.1f} GB/s, big product {multiplied / 1e9:.0f} GFLOP/s")
    print("batch  x-transformers  generate  sampled   ratio  goal   of the bound   (tokens/s)")
    for batch, goal in GOALS.items():
        labels, seeds = torch.arange(batch), range(batch)
        prompt = condition_tokens(vocabulary, labels, batch, prior.device)
        runs: list[Callable[[], torch.Tensor]] = [
            lambda prompt=prompt: peer.generate(prompt, vocabulary.length, temperature=0.0, cache_kv=True),
            lambda labels=labels, seeds=seeds: generate(prior, labels, GREEDY, seeds).codes.flatten(1),
            lambda labels=labels, seeds=seeds: generate(prior, labels, SamplingOptions(), seeds).codes.flatten(1),
        ]
        expected, found, _ = (run() for run in runs)
        assert torch.equal(expected, found), f"greedy tokens differ at batch {batch}"
        slow, fast, sampled = fastest(runs, repeats)
        tokens = batch * vocabulary.length
        bound = vocabulary.length * step_bound(prior, batch, copied, multiplied)
        print(
            f"{batch:5d}  {tokens / slow:14.0f}  {tokens / fast:8.0f}  {tokens / sampled:7.0f}  {slow / fast:5.2f}x"
            f"  {goal:.1f}x  {bound / fast:13.2f}"
        )


def fastest(runs: list[Callable[[], torch.Tensor]], repeats: int) -> list[float]:
    """Seconds of the fastest call of each, called in alternation."""
    best = [float("inf")] * len(runs)
    for _ in range(repeats):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def copy_rate() -> float:
    """Bytes read and written per second by a copy too big for any cache."""
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest([lambda: target.copy_(source)], 5)[0]


def product_rate() -> float:
    """Floating point operations per second of a big matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / fastest([lambda: a @ b], 5)[0]


def step_bound(prior: TokenPrior, batch: int, copied: float, multiplied: float) -> float:
    """Seconds of an average step that only reads, or only multiplies."""
    decoder = StaticDecoder(prior, batch)
    weights = sum(weight.numel() for block in decoder.blocks for weight in (block.qkv, block.out, block.up, block.down))
    weights += decoder.head.numel()
    cached = sum(cache.numel() for cache in decoder.caches) / 2  # half full on average
    return max(4 * (weights + cached) / copied, 2 * (weights * batch + cached) / multiplied)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--positions", nargs="+", choices=["learned", "rotary"], default=["learned", "rotary"])
    arguments = parser.parse_args()
    for kind in arguments.positions:
        main(arguments.repeats, arguments.threads, kind)
