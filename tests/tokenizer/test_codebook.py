import socket

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from tokenizer.bottlenecks.codebook import Codebook
from tokenizer.bottlenecks.kmeans import kmeans
from tokenizer.bottlenecks.nearest import cluster_sums, nearest


def blobs(n, k=32, d=8, seed=0):
    """n vectors about k well separated centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = 5 * torch.randn(k, d, generator=torch.Generator().manual_seed(99))
    return centres[torch.randint(0, k, (n,), generator=generator)] + 0.1 * torch.randn(n, d, generator=generator)


def state_of(codebook):
    return {key: value.clone() for key, value in codebook.state_dict().items()}


@pytest.mark.parametrize("budget", [1, 1000, 2**21])
def test_nearest_is_the_smallest_distance_whatever_the_chunk(budget, monkeypatch):
    monkeypatch.setitem(nearest.__globals__, "SCORES_ON_CPU", budget)
    vectors, codebook = torch.randn(321, 7), torch.randn(40, 7)
    assert torch.equal(nearest(vectors, codebook), torch.cdist(vectors.double(), codebook.double()).argmin(1))


def test_nearest_takes_the_first_of_equal_codes():
    codebook = torch.randn(50, 3).repeat(2, 1)
    assert torch.equal(nearest(codebook, codebook), torch.arange(50).repeat(2))


def test_codes_of_diverged_features_stay_in_range():
    vectors = torch.tensor([[torch.inf, 0.0], [torch.nan, 0.0], [-torch.inf, torch.inf]])
    assert nearest(vectors, torch.randn(5, 2)).lt(5).all()


def test_cluster_sums_are_the_one_hot_products():
    vectors, codes = torch.randn(100, 5), torch.randint(0, 9, (100,))
    one_hot = torch.nn.functional.one_hot(codes, 9).float()
    counts, sums = cluster_sums(vectors, codes, 9)
    assert torch.equal(counts, one_hot.sum(0))
    torch.testing.assert_close(sums, one_hot.T @ vectors)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_assignments_and_moving_averages_are_those_of_vector_quantize_pytorch(distance):
    peer = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    cosine = distance == "cosine"
    theirs = peer.VectorQuantize(8, 32, decay=0.99, eps=1e-5, use_cosine_sim=cosine, rotation_trick=False).train()
    ours = Codebook(32, 8, decay=0.99, eps=1e-5, kmeans_init=False, distance=distance)
    ours.embedding.copy_(theirs.codebook)
    ours.ema_sum.copy_(theirs._codebook.embed_avg[0])
    for step in range(12):
        vectors = torch.randn(1, 500, 8) * (1 + step)
        z, codes, _ = theirs(vectors)
        unit = torch.nn.functional.normalize(vectors[0], dim=-1) if cosine else vectors[0]
        quantized = ours(unit, step)
        assert torch.equal(quantized.codes, codes[0])
        torch.testing.assert_close(quantized.vectors, z[0])
        torch.testing.assert_close(ours.ema_count, theirs._codebook.cluster_size[0])
        torch.testing.assert_close(ours.ema_sum, theirs._codebook.embed_avg[0])
        torch.testing.assert_close(ours.embedding, theirs.codebook)


def test_assignments_are_made_in_float32_under_autocast():
    torch.manual_seed(0)
    # Differences that bfloat16, with 8 bits of mantissa, cannot see.
    codebook = Codebook(64, 4, kmeans_init=False).eval()
    codebook.embedding.copy_(1 + 1e-3 * torch.randn(64, 4))
    with torch.autocast("cpu", torch.bfloat16):
        codes = codebook(codebook.embedding.clone()).codes
    assert torch.equal(codes, torch.arange(64))


def test_restart_resets_embedding_count_and_sum_together():
    torch.manual_seed(0)
    codebook = Codebook(8, 4, kmeans_init=False, restart_below=0.5, restart_every=1)
    codebook.ema_count[3:5] = 0.01
    codebook.ema_sum[3:5] = 7.0
    codebook.embedding[3:5] = 1000.0  # wins nothing
    vectors = torch.randn(200, 4)
    codebook(vectors)
    for code in (3, 4):
        assert (vectors == codebook.embedding[code]).all(1).any()
        assert codebook.ema_count[code] == 0.5
        torch.testing.assert_close(codebook.ema_sum[code], 0.5 * codebook.embedding[code])
    assert not torch.equal(codebook.embedding[3], codebook.embedding[4])


def test_restart_leaves_living_codes_alone():
    torch.manual_seed(0)
    plain = Codebook(8, 4, kmeans_init=False)
    plain.ema_count[3] = 0.01
    restarting = Codebook(8, 4, kmeans_init=False, restart_below=0.5, restart_every=1)
    restarting.load_state_dict(plain.state_dict())
    plain.embedding[3] = restarting.embedding[3] = 1000.0
    vectors = torch.randn(200, 4)
    plain(vectors), restarting(vectors)
    others = torch.arange(8) != 3
    for key in ("embedding", "ema_count", "ema_sum"):
        assert torch.equal(plain.get_buffer(key)[others], restarting.get_buffer(key)[others])
    assert not torch.equal(plain.embedding[3], restarting.embedding[3])


def test_restarts_wait_for_their_step():
    codebook = Codebook(8, 4, kmeans_init=False, restart_below=1e9, restart_every=10)
    for step in (1, 9, 11):
        codebook(torch.randn(50, 4), step)
    assert codebook.ema_count.max() < 1e9
    codebook(torch.randn(50, 4), 20)
    assert codebook.ema_count.min() == 1e9


def test_restart_of_more_codes_than_vectors_gives_no_vector_twice():
    torch.manual_seed(0)
    codebook = Codebook(64, 4, kmeans_init=False, restart_below=10.0, restart_every=1)
    vectors = torch.randn(5, 4)
    codebook(vectors)
    placed = (codebook.embedding[:, None] == vectors).all(-1)
    assert placed.sum(0).tolist() == [1] * 5


def test_restarts_bring_dead_codes_into_use():
    torch.manual_seed(0)
    usage = {}
    for restart_below in (None, 0.9):
        codebook = Codebook(32, 8, kmeans_init=False, restart_below=restart_below, restart_every=2)
        for step in range(100):
            codebook(blobs(512, seed=step), step)
        usage[restart_below] = len(codebook.eval()(blobs(4096)).codes.unique())
    assert usage[None] < 20 and usage[0.9] >= 28


def test_kmeans_finds_separated_clusters_under_a_plain_ground():
    torch.manual_seed(0)
    ground = torch.zeros(3000, 8)
    vectors = torch.cat([ground, blobs(1000)])[torch.randperm(4000)]
    means, counts = kmeans(vectors, 64)
    assert counts.sum() == 4000
    assert (vectors - means[nearest(vectors, means)]).square().sum(1).mean() < 0.1


@pytest.mark.parametrize("distinct", [1, 5, 20])
def test_kmeans_of_fewer_vectors_than_codes_repeats_no_code(distinct):
    torch.manual_seed(0)
    codebook = Codebook(32, 4)
    vectors = torch.randn(distinct, 4).repeat(2, 1)
    codebook(vectors)
    assert len(codebook.embedding.unique(dim=0)) == 32
    assert codebook.embedding.isfinite().all()
    assert (codebook(vectors).vectors - vectors).abs().max() < 0.1


def test_kmeans_runs_on_the_first_training_batch_only():
    torch.manual_seed(0)
    codebook = Codebook(32, 8, decay=0.0).eval()
    before = state_of(codebook)
    codebook(blobs(512))
    assert all(torch.equal(value, before[key]) for key, value in state_of(codebook).items())
    codebook.train()(blobs(512))
    assert codebook.initialised
    codebook.decay = 1.0  # nothing but k-means would move it now
    before = state_of(codebook)
    codebook(10 + blobs(512))
    torch.testing.assert_close(state_of(codebook), before)


def test_a_loaded_codebook_is_not_initialised_again():
    trained, loaded = Codebook(32, 8), Codebook(32, 8)
    trained(blobs(512))
    loaded.load_state_dict(trained.state_dict())
    trained(blobs(512, seed=1)), loaded(blobs(512, seed=1))
    assert all(torch.equal(value, trained.get_buffer(key)) for key, value in state_of(loaded).items())


def test_an_untrained_state_makes_a_trained_codebook_start_again():
    codebook, untrained = Codebook(32, 8), Codebook(32, 8).state_dict()
    codebook(blobs(512))
    codebook.load_state_dict(untrained)
    codebook(blobs(512))
    assert codebook.initialised


def _train(rank, port, folder):
    """One of two ranks: a plain codebook on half batches, and one with k-means and restarts on uneven batches."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    plain = Codebook(32, 8, kmeans_init=False)
    plain.load_state_dict(torch.load(f"{folder}/start.pt"))
    restarting = Codebook(32, 8, restart_below=3.0, restart_every=2)
    for step in range(6):
        torch.manual_seed(100 * step + rank)
        plain(blobs(128, seed=step)[64 * rank :][:64], step)
        restarting(blobs(128, seed=step).split([100, 28])[rank], step)
    torch.save((plain.state_dict(), restarting.state_dict()), f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_on_half_batches_are_one_on_the_whole_and_agree_after_kmeans_and_restarts(tmp_path):
    torch.manual_seed(0)
    alone = Codebook(32, 8, kmeans_init=False)
    torch.save(alone.state_dict(), tmp_path / "start.pt")
    for step in range(6):
        alone(blobs(128, seed=step), step)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_train, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first[0], dict(alone.state_dict()))
    assert first[1]["initialised"]
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
