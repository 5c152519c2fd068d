import json
import socket

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from tokenizer.codebook_health import CodeUsage, near_duplicates


def health_of(codes, num_codes, embedding=None):
    usage = CodeUsage(num_codes)
    usage.update(codes.view(-1, 1))
    return usage.report(embedding)


def test_uniform_use_is_healthy_with_perplexity_the_number_of_codes():
    health = health_of(torch.arange(64).repeat(20), 64)
    assert health.verdict == "healthy" and health.usage == 1 and health.dead == 0
    assert health.perplexity == pytest.approx(64)


def test_perplexity_is_the_exponential_of_the_entropy():
    health = health_of(torch.tensor([0, 0, 0, 1]), 2)
    assert health.perplexity == pytest.approx(torch.distributions.Categorical(torch.tensor([3.0, 1.0])).entropy().exp())


def test_figures_are_of_the_window_not_of_a_batch():
    usage = CodeUsage(8)
    for code in range(8):
        usage.update(torch.full((2, 3, 3, 1), code))
    health = usage.report()
    assert health.usage == 1 and health.perplexity == pytest.approx(8) and health.tokens == 144


@pytest.mark.parametrize(
    ("codes", "verdict", "figure"),
    [
        (torch.arange(20).repeat(1000), "collapsed", "20 of 512 codes used"),
        (torch.cat([torch.arange(512), torch.zeros(100_000, dtype=torch.long)]), "collapsed", "perplexity 1.1"),
        (torch.arange(200).repeat(100), "weak", "200 of 512 codes used"),
        (torch.cat([torch.arange(512).repeat(2), torch.zeros(3_000, dtype=torch.long)]), "weak", "perplexity"),
        # A plain background on 60 % of the positions is no collapse.
        (torch.cat([torch.arange(512).repeat(20), torch.zeros(15_000, dtype=torch.long)]), "healthy", "512 of 512"),
    ],
)
def test_verdicts_name_their_figures(codes, verdict, figure):
    health = health_of(codes, 512)
    assert health.verdict == verdict and figure in health.reason


def test_a_short_window_is_compared_with_what_it_could_show():
    torch.manual_seed(0)
    health = health_of(torch.randint(0, 8192, (1000,)), 8192)
    assert health.verdict == "healthy" and "short window of 1000 tokens" in health.reason


def test_duplicates_are_found_and_weaken_the_verdict():
    torch.manual_seed(0)
    embedding = torch.randn(64, 8) + 100
    embedding[40:50] = embedding[:10] + 1e-3
    pairs = near_duplicates(embedding, rows_at_once=7)
    assert pairs.tolist() == [[40 + i, i] for i in range(10)]
    health = health_of(torch.arange(64).repeat(20), 64, embedding)
    assert health.duplicates == 10 and health.verdict == "weak" and "10 of 64" in health.reason


def test_duplicates_among_dead_codes_do_not_count():
    embedding = torch.randn(64, 8)
    embedding[48:] = 0
    health = health_of(torch.arange(48).repeat(20), 64, embedding)
    assert health.duplicates == 0 and health.dead == 16 and health.verdict == "healthy"


def test_a_codebook_that_is_one_point_is_all_duplicates():
    assert len(near_duplicates(torch.ones(50, 4))) == 49


def test_one_code_has_no_duplicate():
    assert len(near_duplicates(torch.ones(1, 4))) == 0


def test_the_worst_quantizer_is_named():
    codes = torch.stack([torch.arange(64).repeat(20), torch.zeros(1280, dtype=torch.long)], dim=-1)
    usage = CodeUsage(64, num_quantizers=2)
    usage.update(codes)
    health = usage.report(torch.randn(2, 64, 4))
    assert health.verdict == "collapsed" and health.reason.startswith("in quantizer 2 of 2")
    assert health.dead == 63 and health.tokens == 2560


def test_small_unsigned_codes_are_counted():
    usage = CodeUsage(256, num_quantizers=2)
    usage.update(torch.full((3, 2), 255, dtype=torch.uint8))
    assert usage.counts[:, 255].tolist() == [3, 3]


def test_report_is_plain_json():
    report = health_of(torch.arange(4), 4).as_dict()
    assert json.loads(json.dumps(report)) == report and report["counts"] == [[1, 1, 1, 1]]


def test_an_empty_window_and_a_wrong_number_of_quantizers_are_refused():
    with pytest.raises(ValueError, match="no token"):
        CodeUsage(4).report()
    with pytest.raises(ValueError, match="expected 2"):
        CodeUsage(4, num_quantizers=2).update(torch.zeros(3, 1, dtype=torch.long))


def _one_window_of_two(rank, port):
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    usage = CodeUsage(4)
    usage.update(torch.tensor([[rank], [3]]))
    usage.all_reduce()
    distributed.destroy_process_group()
    assert usage.counts.tolist() == [[1, 1, 0, 2]]


def test_the_window_of_several_processes_is_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_one_window_of_two, (port,), nprocs=2)


def test_in_one_process_the_window_is_its_own():
    usage = CodeUsage(4)
    usage.update(torch.tensor([[1], [3]]))
    usage.all_reduce()
    assert usage.counts.tolist() == [[0, 1, 0, 1]]
