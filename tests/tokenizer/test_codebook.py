import socket
from datetime import timedelta

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


def train(codebook, vectors, step=0):
    """One step of training on one batch."""
    out = codebook(vectors, step)
    codebook.after_step()
    return out


def state_of(codebook):
    return {key: value.clone() for key, value in codebook.state_dict().items()}


@pytest.mark.parametrize("scores_at_once", [1, 1000, None])
def test_nearest_is_the_smallest_distance_whatever_the_chunk(scores_at_once):
    vectors, codebook = torch.randn(321, 7), torch.randn(40, 7)
    expected = torch.cdist(vectors.double(), codebook.double()).argmin(1)
    assert torch.equal(nearest(vectors, codebook, scores_at_once), expected)


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
        quantized = train(ours, unit, step)
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
    codebook = Codebook(8, 4, kmeans_init=False, dead_code_threshold=0.5, restart_every=1)
    codebook.ema_count[3:5] = 0.01
    codebook.ema_sum[3:5] = 7.0
    codebook.embedding[3:5] = 1000.0  # wins nothing
    vectors = torch.randn(200, 4)
    train(codebook, vectors)
    for code in (3, 4):
        assert (vectors == codebook.embedding[code]).all(1).any()
        assert codebook.ema_count[code] == 0.5
        torch.testing.assert_close(codebook.ema_sum[code], 0.5 * codebook.embedding[code])
    assert not torch.equal(codebook.embedding[3], codebook.embedding[4])


def test_restart_leaves_living_codes_alone():
    torch.manual_seed(0)
    plain = Codebook(8, 4, kmeans_init=False)
    plain.ema_count[3] = 0.01
    restarting = Codebook(8, 4, kmeans_init=False, dead_code_threshold=0.5, restart_every=1)
    restarting.load_state_dict(plain.state_dict())
    plain.embedding[3] = restarting.embedding[3] = 1000.0
    vectors = torch.randn(200, 4)
    train(plain, vectors)
    train(restarting, vectors)
    others = torch.arange(8) != 3
    for key in ("embedding", "ema_count", "ema_sum"):
        assert torch.equal(plain.get_buffer(key)[others], restarting.get_buffer(key)[others])
    assert not torch.equal(plain.embedding[3], restarting.embedding[3])


def test_restarts_wait_for_their_step():
    codebook = Codebook(8, 4, kmeans_init=False, dead_code_threshold=1e9, restart_every=10)
    for step in (1, 9, 11):
        train(codebook, torch.randn(50, 4), step)
    assert codebook.ema_count.max() < 1e9
    train(codebook, torch.randn(50, 4), 20)
    assert codebook.ema_count.min() == 1e9


def test_restart_of_more_codes_than_vectors_gives_no_vector_twice():
    torch.manual_seed(0)
    codebook = Codebook(64, 4, kmeans_init=False, dead_code_threshold=10.0, restart_every=1)
    vectors = torch.randn(5, 4)
    train(codebook, vectors)
    placed = (codebook.embedding[:, None] == vectors).all(-1)
    assert placed.sum(0).tolist() == [1] * 5


def test_restarts_prefer_vectors_with_a_large_error():
    """Four of a thousand vectors hold nearly all of the error: the four dead codes go there."""
    torch.manual_seed(0)
    codebook = Codebook(8, 4, kmeans_init=False, dead_code_threshold=0.5, restart_every=1)
    codebook.embedding[:4] = 0
    codebook.embedding[4:], codebook.ema_count[4:] = 1e4, 0.01
    vectors = 0.01 * torch.randn(1000, 4)
    vectors[[17, 300, 301, 999]] += 100
    train(codebook, vectors)
    assert (codebook.embedding[4:].norm(dim=1) > 100).all()


def test_restarts_sample_all_parts_of_a_step_alike():
    """One dead code and parts of 30 and 10 vectors with equal error: the first part gets it three times in four."""
    torch.manual_seed(0)
    first = 0
    for _ in range(400):
        codebook = Codebook(2, 4, kmeans_init=False, dead_code_threshold=0.5, restart_every=1)
        codebook.embedding[0], codebook.embedding[1], codebook.ema_count[1] = 0, 1e4, 0.01
        codebook(torch.ones(30, 4))
        codebook(-torch.ones(10, 4))
        codebook.after_step()
        first += bool(codebook.embedding[1, 0] > 0)
    assert abs(first / 400 - 0.75) < 0.08


def test_restarts_of_a_step_in_parts_replace_the_codes_that_the_whole_would():
    states = []
    for sizes in ([200], [50, 100, 50]):
        torch.manual_seed(0)
        codebook = Codebook(64, 4, kmeans_init=False, dead_code_threshold=1.0, restart_every=1)
        vectors = torch.randn(200, 4)
        for step in range(3):
            for part in (vectors + step).split(sizes):
                codebook(part, step)
            codebook.after_step()
            states.append((step, codebook.ema_count.eq(1.0)))
    for (_, whole), (_, parted) in zip(states[:1], states[3:4], strict=True):
        assert whole.any() and torch.equal(whole, parted)


def test_nothing_is_left_of_a_step_in_the_next():
    codebook = Codebook(8, 4, kmeans_init=False, dead_code_threshold=0.5, restart_every=1)
    train(codebook, torch.randn(50, 4))
    before = state_of(codebook)
    codebook.after_step()
    assert all(torch.equal(value, before[key]) for key, value in state_of(codebook).items())


def test_restarts_use_vectors_of_their_own_step_only():
    torch.manual_seed(0)
    codebook = Codebook(2, 4, kmeans_init=False, dead_code_threshold=0.5, restart_every=1)
    for _ in range(20):
        for vectors in (torch.ones(30, 4), -torch.ones(10, 4)):
            codebook.embedding[0], codebook.embedding[1], codebook.ema_count[1] = 0, 1e4, 0.01
            train(codebook, vectors)
            assert torch.equal(codebook.embedding[1], vectors[0])


def test_vectors_too_long_for_a_distance_are_not_learned_from():
    codebook, vectors = Codebook(8, 4, kmeans_init=False), torch.randn(50, 4)
    vectors[7, 2] = 1e30
    assert train(codebook, vectors).nonfinite == 1
    assert codebook.embedding.abs().max() < 10


def test_restarts_bring_dead_codes_into_use():
    torch.manual_seed(0)
    usage = {}
    for dead_code_threshold in (None, 0.9):
        codebook = Codebook(32, 8, kmeans_init=False, dead_code_threshold=dead_code_threshold, restart_every=2)
        for step in range(100):
            train(codebook, blobs(512, seed=step), step)
        usage[dead_code_threshold] = len(codebook.eval()(blobs(4096)).codes.unique())
    assert usage[None] < 20 and usage[0.9] >= 28


def test_kmeans_finds_separated_clusters_under_a_plain_background():
    torch.manual_seed(0)
    background = torch.zeros(3000, 8)
    vectors = torch.cat([background, blobs(1000)])[torch.randperm(4000)]
    means, counts = kmeans(vectors, 64)
    assert counts.sum() == 4000
    assert (vectors - means[nearest(vectors, means)]).square().sum(1).mean() < 0.1


@pytest.mark.parametrize("distinct", [1, 5, 20])
def test_kmeans_of_fewer_vectors_than_codes_repeats_no_code(distinct):
    torch.manual_seed(0)
    codebook = Codebook(32, 4)
    vectors = torch.randn(distinct, 4).repeat(2, 1)
    train(codebook, vectors)
    assert len(codebook.embedding.unique(dim=0)) == 32
    assert codebook.embedding.isfinite().all()
    assert (codebook(vectors).vectors - vectors).abs().max() < 0.1


def test_kmeans_counts_stand_for_the_whole_batch():
    """k-means sees 64 vectors a code; the counts are those of all 1,000."""
    codebook = Codebook(2, 4)
    codebook(torch.randn(1000, 4))
    assert codebook.ema_count.sum().item() == pytest.approx(1000)


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
    train(codebook, 10 + blobs(512))
    torch.testing.assert_close(state_of(codebook), before)


def test_a_loaded_codebook_is_not_initialised_again():
    trained, loaded = Codebook(32, 8), Codebook(32, 8)
    train(trained, blobs(512))
    loaded.load_state_dict(trained.state_dict())
    train(trained, blobs(512, seed=1))
    train(loaded, blobs(512, seed=1))
    assert all(torch.equal(value, trained.get_buffer(key)) for key, value in state_of(loaded).items())


def test_an_untrained_state_makes_a_trained_codebook_start_again():
    codebook, untrained = Codebook(32, 8), Codebook(32, 8).state_dict()
    train(codebook, blobs(512))
    codebook.load_state_dict(untrained)
    train(codebook, blobs(512))
    assert codebook.initialised


# Two ranks. All scenarios run in one pair of processes, since starting one is slow.


def _plain():
    torch.manual_seed(0)
    return Codebook(32, 8, kmeans_init=False)


def half_of_every_batch_in_two_parts(rank):
    codebook = _plain()
    for step in range(6):
        for part in blobs(128, seed=step)[64 * rank :][:64].split([50, 14]):
            codebook(part, step)
        codebook.after_step()
    return codebook


def uneven_batches_with_restarts(rank):
    codebook = Codebook(32, 8, dead_code_threshold=3.0, restart_every=2)
    for step in range(6):
        torch.manual_seed(100 * step + rank)
        train(codebook, blobs(128, seed=step).split([100, 28])[rank], step)
    return codebook


def kmeans_of_different_data(rank):
    codebook = Codebook(32, 8)
    codebook(blobs(256, k=16, seed=rank) + 100 * rank)
    return codebook


def a_finite_vector_on_one_rank_in_the_second_step(rank):
    codebook = Codebook(8, 8)
    train(codebook, torch.full((64, 8), torch.nan))
    assert not codebook.initialised
    train(codebook, blobs(64) if rank else torch.full((64, 8), torch.nan))
    return codebook


def restarts_where_one_rank_has_all_the_error(rank):
    codebook = Codebook(8, 4, kmeans_init=False, dead_code_threshold=0.5, restart_every=1)
    codebook.embedding.zero_()
    codebook.embedding[4:], codebook.ema_count[4:] = 1000.0, 0.01  # these win nothing
    train(codebook, (1e-3 if rank == 0 else 10.0) * torch.randn(50, 4))
    return codebook


SCENARIOS = (
    half_of_every_batch_in_two_parts,
    uneven_batches_with_restarts,
    kmeans_of_different_data,
    a_finite_vector_on_one_rank_in_the_second_step,
    restarts_where_one_rank_has_all_the_error,
)


def _run_scenarios(rank, port, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    states = {}
    for scenario in SCENARIOS:
        torch.manual_seed(1000 + rank)
        states[scenario.__name__] = scenario(rank).state_dict()
    torch.save(states, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    """The state after each scenario, which must be the same on both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_run_scenarios, (port, str(folder)), nprocs=2)
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in range(2))
    for name, state in first.items():
        assert all(torch.equal(value, second[name][key]) for key, value in state.items()), name
    return lambda scenario: first[scenario.__name__]


def test_two_processes_with_two_parts_each_are_one_process_on_the_whole_batch(of_two_ranks):
    alone = _plain()
    for step in range(6):
        train(alone, blobs(128, seed=step), step)
    torch.testing.assert_close(of_two_ranks(half_of_every_batch_in_two_parts), dict(alone.state_dict()))


def test_ranks_with_uneven_batches_agree_after_kmeans_and_restarts(of_two_ranks):
    assert of_two_ranks(uneven_batches_with_restarts)["initialised"]


def test_kmeans_samples_the_vectors_of_all_ranks(of_two_ranks):
    state = of_two_ranks(kmeans_of_different_data)
    far = state["embedding"].mean(1) > 50
    assert 8 < far.sum() < 24
    assert state["ema_count"].sum() == 512


def test_kmeans_waits_until_some_rank_has_a_finite_vector(of_two_ranks):
    state = of_two_ranks(a_finite_vector_on_one_rank_in_the_second_step)
    assert state["initialised"] and all(value.isfinite().all() for value in state.values())


def test_restarts_sample_the_vectors_of_all_ranks_by_their_error(of_two_ranks):
    state = of_two_ranks(restarts_where_one_rank_has_all_the_error)
    assert (state["embedding"][4:].norm(dim=1) > 1).all()
