"""Sampling and encoding on a CUDA device agree with their slow references and with the CPU."""

import pytest
import torch

from pipelines.data import open_images
from pipelines.encode import encode
from pipelines.models.checkpoint import load_tokenizer
from pipelines.tokens.dataset import TokenDataset
from prior import SamplingOptions, SamplingRequest, generate, generate_naive
from prior.noise import gumbel, random_bits
from tests.gpu.test_training import prior_phase
from tests.pipelines.conftest import shapes_data, write_tokenizer


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.9}, {"guidance_scale": 2.0, "top_k": 8}])
def test_the_fast_sampler_draws_what_the_naive_one_draws(options):
    prior = prior_phase().model.cuda().eval()
    request = SamplingRequest(range(16), torch.arange(16, device="cuda") % 5, SamplingOptions(**options))
    fast, naive = generate(prior, request), generate_naive(prior, request)
    assert fast.codes.device.type == "cuda"
    assert (fast.codes == naive.codes).float().mean() > 0.99
    same = (fast.codes == naive.codes).flatten(1).all(1)
    torch.testing.assert_close(fast.logprobs[same], naive.logprobs[same], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_prior_in_half_precision_samples(dtype):
    prior = prior_phase().model.cuda().to(dtype).eval()
    found = generate(prior, SamplingRequest(range(8), torch.arange(8, device="cuda") % 5))
    assert found.logprobs.isfinite().all() and int(found.codes.max()) < 64


def test_images_are_those_of_the_cpu_up_to_rounding():
    prior = prior_phase().model.eval()
    request = SamplingRequest(range(16), torch.arange(16) % 5)
    on_cpu = generate(prior, request).codes
    moved = SamplingRequest(range(16), torch.arange(16, device="cuda") % 5)
    assert (generate(prior.cuda(), moved).codes.cpu() == on_cpu).float().mean() > 0.95


def test_the_bits_of_the_noise_are_those_of_the_cpu():
    seeds, positions = torch.arange(-64, 64), torch.arange(200)
    on_cpu, on_gpu = random_bits(seeds, positions, 1000), random_bits(seeds.cuda(), positions.cuda(), 1000).cpu()
    assert torch.equal(on_gpu, on_cpu)
    torch.testing.assert_close(gumbel(on_gpu.cuda()).cpu(), gumbel(on_cpu), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "bottleneck", [{"kind": "vq", "num_codes": 64, "dim": 8}, {"kind": "fsq", "levels": (8, 6, 5)}]
)
def test_encoded_tokens_are_those_of_the_cpu_up_to_near_ties(tmp_path, bottleneck):
    folder = write_tokenizer(tmp_path / "tokenizer", bottleneck)
    data = shapes_data(train=64, validation=32, test=32)
    encode(folder, data, tmp_path / "tokens")
    stored = TokenDataset.open(tmp_path / "tokens").split("test").batch(range(32))["codes"]
    images = open_images(data, "test").read_batch(range(32)).image
    with torch.no_grad():
        expected = load_tokenizer(folder).model.encode(images).codes
    assert (stored == expected).float().mean() > 0.99
