"""The quantizer beside vector-quantize-pytorch 1.32, on the same vectors with the same meaning: Euclidean distance,
decay 0.99, commitment 0.25, plain straight-through, no k-means, no restarts.

    python tests/benchmarks/quantizer.py [--device cuda] [--threads 2] [--repeats 7] [--size N,D,K ...]

Each side gets features (1, D, N/64, 64) and gives latents, codes and the commitment loss, and in training moves its
codebook (here: `after_step`). Times are medians of repeats that alternate between the sides, so that a change of the
machine's load meets both. Before anything is timed, both sides must give the same codes, latents and loss.

"peak" is by how much one forward raises the memory in use, outputs included. On a CPU it is measured in a fresh process
per side and mode, with libraries loaded, inputs made and a tiny forward done: the kernel's high-water mark of the
resident set (VmHWM) is reset before the forward and read after it. It needs Linux; elsewhere it prints nan. On a GPU it
is torch's peak of allocated memory.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor

SIZES = ["8192,64,512", "8192,64,1024", "16384,32,512", "8192,64,4096", "32768,64,1024"]
Forward = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def ours(dim: int, num_codes: int, training: bool, embedding: Tensor) -> Forward:
    """smalti. The module goes to the device of `embedding`."""
    from tokenizer.bottlenecks.vq import VQ, VQConfig

    module: Any = VQ(VQConfig(num_codes=num_codes, dim=dim, kmeans_init=False)).train(training).to(embedding.device)
    module.codebooks[0].embedding.copy_(embedding)
    module.codebooks[0].ema_sum.copy_(embedding)

    def forward(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = module(h, 0)
        module.after_step(0)
        return out.z, out.codes[..., 0], 0.25 * out.terms["commitment"].mean() / h[0].numel()

    return forward


def theirs(dim: int, num_codes: int, training: bool, embedding: Tensor) -> Forward:
    """vector-quantize-pytorch."""
    from vector_quantize_pytorch import VectorQuantize

    module: Any = VectorQuantize(
        dim, num_codes, decay=0.99, commitment_weight=0.25, rotation_trick=False, accept_image_fmap=True
    ).train(training)
    module = module.to(embedding.device)
    module.codebook.copy_(embedding)
    module._codebook.embed_avg[0].copy_(embedding)
    return lambda h: module(h)


SIDES = {"smalti": ours, "peer": theirs}


def features(n: int, dim: int, training: bool, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, dim, n // 64, 64, generator=generator).to(device).requires_grad_(training)


def codebook(dim: int, num_codes: int, device: str) -> Tensor:
    return torch.randn(num_codes, dim, generator=torch.Generator().manual_seed(1)).to(device)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_both(n: int, dim: int, num_codes: int, training: bool, repeats: int, device: str) -> dict[str, float]:
    """Median seconds of a forward of each side."""
    h, embedding = features(n, dim, training, device), codebook(dim, num_codes, device)
    forwards = {side: make(dim, num_codes, training, embedding) for side, make in SIDES.items()}
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    with torch.set_grad_enabled(training):
        z, codes, loss = forwards["smalti"](h)
        peer_z, peer_codes, peer_loss = forwards["peer"](h)
        agreement = (codes == peer_codes).float().mean().item()
        if agreement < 0.9999:  # a tie may fall either way in the last digit
            raise SystemExit(f"{n},{dim},{num_codes}: only {agreement:.2%} of the codes agree")
        same = (codes == peer_codes)[:, None].expand_as(z)
        torch.testing.assert_close(z[same], peer_z[same])
        if training:
            torch.testing.assert_close(loss, peer_loss.squeeze(), rtol=1e-4, atol=1e-5)
        for _ in range(repeats):
            for side, forward in forwards.items():
                synchronize(device)
                begin = time.perf_counter()
                forward(h)
                synchronize(device)
                times[side].append(time.perf_counter() - begin)
    return {side: statistics.median(values) for side, values in times.items()}


def print_peak(side: str, n: int, dim: int, num_codes: int, training: bool, device: str) -> None:
    """In a process of its own: MiB by which one forward raises the peak of the memory in use."""
    h = features(n, dim, training, device)
    with torch.set_grad_enabled(training):
        SIDES[side](dim, num_codes, training, codebook(dim, num_codes, device))(features(64, dim, training, device))
        forward = SIDES[side](dim, num_codes, training, codebook(dim, num_codes, device))
        before = high_water_mark(device, reset=True)
        result = forward(h)
        after = high_water_mark(device)
    del result
    print(after - before)


def high_water_mark(device: str, reset: bool = False) -> float:
    """Peak of the memory in use, in MiB, since the last reset."""
    if device == "cuda":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak(side: str, size: str, training: bool, threads: int, device: str) -> float:
    arguments = ["--peak", side, "--size", size, "--threads", str(threads), "--device", device]
    arguments += ["--training"] * training
    output = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True).stdout
    return float(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--size", action="append", help="N,D,K; may be given several times")
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--training", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        n, dim, num_codes = map(int, options.size[0].split(","))
        return print_peak(options.peak, n, dim, num_codes, options.training, options.device)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} threads"
    print(f"torch {torch.__version__}, {machine}, median of {options.repeats}")
    print(f"{'N':>6} {'D':>4} {'K':>5}  {'mode':8} {'smalti':>9} {'peer':>9} {'ratio':>6}   {'peak':>9} {'peer':>9}")
    for size in options.size or SIZES:
        n, dim, num_codes = map(int, size.split(","))
        for mode in ("training", "eval"):
            times = time_both(n, dim, num_codes, mode == "training", options.repeats, options.device)
            peaks = {side: peak(side, size, mode == "training", options.threads, options.device) for side in SIDES}
            print(
                f"{n:6} {dim:4} {num_codes:5}  {mode:8} {1e3 * times['smalti']:6.2f} ms {1e3 * times['peer']:6.2f} ms "
                f"{times['peer'] / times['smalti']:5.1f}x   {peaks['smalti']:5.0f} MiB {peaks['peer']:5.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
