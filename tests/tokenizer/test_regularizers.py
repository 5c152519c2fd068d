"""Terms of a whole batch of latents: the total correlation and the maximum mean discrepancy."""

import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.distributions import MultivariateNormal, Normal

from tests.tokenizer.members import examples
from tests.tokenizer.test_objective import objective_of, vae, vq
from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderOutput, AutoencoderPhase, ObjectiveConfig
from tokenizer.bottlenecks import BottleneckOutput
from tokenizer.posteriors import DiagonalGaussian
from tokenizer.regularizers import RegularizerConfig, latent_rows
from tokenizer.regularizers.mmd import MaximumMeanDiscrepancy
from tokenizer.regularizers.total_correlation import TotalCorrelation
from tokenizer.standard_normal import StandardNormal

KINDS: dict[str, Any] = examples(RegularizerConfig)


def output(posterior: DiagonalGaussian, draws: int = 1) -> AutoencoderOutput:
    """What a regularizer reads of the output of an autoencoder."""
    shape: Any = tuple(posterior.mean.shape[1:])
    z, prior = posterior.sample(draws), StandardNormal(shape)
    bottleneck = BottleneckOutput(posterior.mean, posterior=posterior)
    return AutoencoderOutput(bottleneck, z, z.flatten(0, 1), {}, {}, latent_prior=prior)


def posterior_of(b: int, shape=(3, 1, 1)) -> DiagonalGaussian:
    return DiagonalGaussian(torch.randn(b, *shape), 0.5 * torch.randn(b, *shape) - 1)


def deterministic() -> Autoencoder:
    config = vae().config.model_dump() | {"bottleneck": {"kind": "deterministic", "dim": 2}}
    return Autoencoder(AutoencoderConfig.model_validate(config))


# Total correlation


def by_loops(out: Any, weight: Any) -> tuple[float, float, float]:
    """Mutual information, total correlation and dimension-wise KL, one logarithm at a time; `weight(i, j)`."""
    posterior, z = out.bottleneck.posterior, out.z
    scale = (posterior.log_variance.double() / 2).exp().flatten(1)
    mean, sums = posterior.mean.double().flatten(1), [0.0, 0.0, 0.0]
    b, draws = z.shape[:2]
    for i, k in itertools.product(range(b), range(draws)):
        point = z[i, k].double().flatten()
        density = [Normal(mean[j], scale[j]).log_prob(point).exp() for j in range(b)]
        joint = math.log(sum(weight(i, j) * density[j].prod() for j in range(b)))
        marginals = sum(
            math.log(sum(weight(i, j) * density[j][element] for j in range(b))) for element in range(len(point))
        )
        prior = Normal(0.0, 1.0).log_prob(point).sum()
        for place, value in enumerate((density[i].prod().log() - joint, joint - marginals, marginals - prior)):
            sums[place] += float(value) / (b * draws)
    return sums[0], sums[1], sums[2]


def stratified(size: int, b: int):
    def weight(i: int, j: int) -> float:
        if i == j:
            return 1 / size
        return (size - b + 1) / (size * (b - 1)) if j == (i + 1) % b else 1 / (b - 1)

    return weight


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({}, lambda i, j: 1 / 5),
        ({"dataset_size": 1000}, lambda i, j: 1 / 5000),
        ({"estimator": "stratified", "dataset_size": 1000}, stratified(1000, 5)),
        ({"estimator": "stratified", "dataset_size": 5}, stratified(5, 5)),
    ],
)
def test_the_three_parts_are_those_of_plain_loops(options, weight, draws, shape):
    out = output(posterior_of(5, shape), draws)
    found = TotalCorrelation(**options).regularize(out)
    parts = (found.metrics["mutual_information"], found.term, found.metrics["dimension_wise_kl"])
    assert [part.item() for part in parts] == pytest.approx(by_loops(out, weight), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("total_correlation")])
def test_the_parts_add_up_to_the_kl_of_the_drawn_latents(name):
    out = output(posterior_of(7), 2)
    found = KINDS[name].regularize(out)
    kl = (out.bottleneck.posterior.log_prob(out.z) - out.latent_prior.log_prob(out.z)).mean()
    torch.testing.assert_close(found.term + sum(found.metrics.values()), kl, rtol=1e-4, atol=1e-4)


def correlated(b: int, rho: float) -> DiagonalGaussian:
    """Posteriors whose mean over all images is a normal with unit variances and the correlation `rho`."""
    noise = 0.5  # variance of each posterior
    spread = torch.tensor([[1 - noise, rho], [rho, 1 - noise]])
    mean = MultivariateNormal(torch.zeros(2), spread).sample((b,))
    return DiagonalGaussian(mean.view(b, 2, 1, 1), torch.full((b, 2, 1, 1), math.log(noise)))


@pytest.mark.parametrize("rho", [0.0, 0.4])
@pytest.mark.parametrize("options", [{}, {"estimator": "stratified", "dataset_size": 10**6}])
def test_a_large_batch_gives_the_total_correlation_of_a_gaussian(rho, options):
    """-ln(1 - rho²) / 2 in closed form."""
    torch.manual_seed(0)
    found = torch.stack([TotalCorrelation(**options).regularize(output(correlated(2000, rho))).term for _ in range(4)])
    assert found.mean().item() == pytest.approx(-math.log(1 - rho**2) / 2, abs=0.02)


def test_the_size_of_the_data_set_moves_the_weighted_estimate_and_not_its_gradient():
    """Each ln q loses ln N: one for the joint density, one for every element."""
    posterior = posterior_of(6)
    posterior.mean.requires_grad_()
    out, found, gradients = output(posterior), [], []
    for size in (None, 1000):
        term = TotalCorrelation(dataset_size=size).regularize(out).term
        found.append(term.item())
        gradients.append(torch.autograd.grad(term, posterior.mean, retain_graph=True)[0])
    assert found[1] - found[0] == pytest.approx((3 - 1) * math.log(1000), rel=1e-4)
    torch.testing.assert_close(*gradients)


def test_without_the_size_the_mutual_information_is_at_most_ln_of_the_batch():
    apart = DiagonalGaussian(100 * torch.arange(8.0).view(8, 1, 1, 1), torch.zeros(8, 1, 1, 1))
    found = TotalCorrelation().regularize(output(apart))
    assert found.metrics["mutual_information"].item() == pytest.approx(math.log(8), rel=1e-4)
    assert found.term.item() == pytest.approx(0, abs=1e-4)  # of a single element


def test_stratified_weights_give_the_aggregate_posterior_on_average():
    """Over all batches of three of five images that hold the image of the latent, as in appendix C.2."""
    images, batch = 5, 3
    weights = TotalCorrelation(estimator="stratified", dataset_size=images)._log_weights(batch, 1).exp()
    density = torch.rand(images, dtype=torch.float64)
    estimates = [
        (weights[0].double() * density[[0, *others]]).sum()
        for others in itertools.permutations(range(1, images), batch - 1)
    ]
    assert torch.stack(estimates).mean().item() == pytest.approx(density.mean().item(), rel=1e-6)


def test_weighted_estimates_of_the_density_are_too_low():
    """Whatever the densities, over all batches of three of five images that hold the image of the latent."""
    weights = TotalCorrelation(dataset_size=5)._log_weights(3, 1).exp().double()
    for density in (torch.tensor([1.0, 0, 0, 0, 0]), torch.tensor([0, 1.0, 0, 0, 0]), torch.rand(5)):
        estimates = [(weights[0] * density[[0, *others]]).sum() for others in itertools.permutations(range(1, 5), 2)]
        assert torch.stack(estimates).mean() < density.mean()


def test_stratified_needs_the_size_of_the_data_set_and_both_estimators_two_images():
    with pytest.raises(ValidationError, match="needs dataset_size"):
        TotalCorrelation(estimator="stratified")
    for estimator in ("stratified", "weighted"):
        with pytest.raises(ValueError, match="found 1 image in a batch, expected at least 2"):
            TotalCorrelation(estimator=estimator, dataset_size=10).check_batch(1)
    with pytest.raises(ValueError, match="dataset_size: found 10, expected at least the 11"):
        TotalCorrelation(dataset_size=10).check_batch(11)


# Maximum mean discrepancy


def kernel_value(options: MaximumMeanDiscrepancy, x: torch.Tensor, y: torch.Tensor) -> float:
    squared = sum(float(a - b) ** 2 for a, b in zip(x, y, strict=True))
    values = []
    for scale in options.scales:
        c = 2 * len(x) * scale
        values.append(c / (c + squared) if options.kernel == "inverse_multiquadratic" else math.exp(-squared / c))
    return sum(values)


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("mmd")])
def test_the_discrepancy_is_that_of_a_double_loop(name):
    options: Any = KINDS[name]
    z, prior, n = torch.randn(6, 3) + 0.5, torch.randn(6, 3), 6
    expected = 0.0
    for i, j in itertools.product(range(n), repeat=2):
        if i != j:
            within = kernel_value(options, z[i], z[j]) + kernel_value(options, prior[i], prior[j])
            expected += within / (n * (n - 1))
        expected -= 2 * kernel_value(options, z[i], prior[j]) / n**2
    assert options.discrepancy(z, prior).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("mmd")])
def test_equal_distributions_have_no_discrepancy_on_average_and_others_have_one(name):
    options: Any = KINDS[name]
    torch.manual_seed(0)
    found = torch.stack([options.discrepancy(torch.randn(8, 2), torch.randn(8, 2)) for _ in range(1000)])
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(1000) and (found < 0).any()
    assert options.discrepancy(torch.randn(200, 2) + 1, torch.randn(200, 2)) > 0.05


def test_the_discrepancy_is_exact_under_autocast():
    z, prior = torch.randn(6, 3), torch.randn(6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = MaximumMeanDiscrepancy().discrepancy(z, prior)
    assert torch.equal(found, MaximumMeanDiscrepancy().discrepancy(z, prior))


def test_the_discrepancy_has_one_draw_of_each_image():
    """Draws of one image are not independent; counted as if they were, narrow posteriors would have a discrepancy."""
    posterior = posterior_of(5)
    posterior.log_variance.fill_(-20)
    torch.manual_seed(0)
    out = output(posterior, 3)
    torch.manual_seed(1)
    found = MaximumMeanDiscrepancy().regularize(out).term
    torch.manual_seed(1)
    expected = MaximumMeanDiscrepancy().discrepancy(out.z[:, 0].flatten(1), torch.randn(5, 3))
    torch.testing.assert_close(found, expected)


def test_one_image_has_no_discrepancy():
    with pytest.raises(ValueError, match="expected at least 2"):
        MaximumMeanDiscrepancy().check_batch(1)


# Every regularizer in the objective


def phase_with(config: Any, weight: float, model: Autoencoder | None = None) -> AutoencoderPhase:
    objective = objective_of({"nll": 1, "kl": 1, config.kind: weight}).model_copy(update={"regularizers": (config,)})
    return AutoencoderPhase(model or vae(), objective)


@pytest.mark.parametrize("name", KINDS)
def test_a_regularizer_is_a_weighted_term_of_the_loss(name):
    config, batch = KINDS[name], {"image": torch.rand(4, 1, 8, 8)}
    results = []
    for weight in (0, 3):
        torch.manual_seed(0)
        results.append(phase_with(config, weight)(batch, 0))
    (without, metrics), (loss, same) = results
    assert loss.item() == pytest.approx((without + 3 * metrics[config.kind] / 64).item(), rel=1e-5)
    assert metrics[config.kind] == same[config.kind] and {value.shape for value in metrics.values()} == {()}
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("name", KINDS)
def test_its_gradient_reaches_the_encoder_and_not_the_decoder(name):
    model = vae()
    KINDS[name].regularize(model(torch.rand(4, 1, 8, 8))).term.backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())
    assert all(parameter.grad is None for parameter in model.decoder.parameters())


def test_draws_of_a_learned_prior_get_no_gradient():
    config = vae().config.model_dump() | {"latent_prior": {"kind": "flow"}}
    model: Any = Autoencoder(AutoencoderConfig.model_validate(config))
    MaximumMeanDiscrepancy().regularize(model(torch.rand(4, 1, 8, 8))).term.backward()
    assert all(parameter.grad is None for parameter in model.latent_prior.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_its_random_numbers_are_those_of_the_default_stream(name):
    phase, batch, found = phase_with(KINDS[name], 1), {"image": torch.rand(4, 1, 8, 8)}, []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(phase(batch, 0)[1][KINDS[name].kind].item())
    assert found[0] == found[1] != found[2]


def test_a_deterministic_latent_takes_the_discrepancy_and_has_no_total_correlation():
    objective = objective_of({"nll": 1, "mmd": 10}).model_copy(update={"regularizers": (MaximumMeanDiscrepancy(),)})
    phase = AutoencoderPhase(deterministic(), objective)
    phase({"image": torch.rand(4, 1, 8, 8)}, 0)[0].backward()
    assert all(parameter.grad is not None for parameter in phase.trained_parameters().values())
    objective = objective_of({"nll": 1, "total_correlation": 1})
    with pytest.raises(ValueError, match="total_correlation: expected a Gaussian bottleneck"):
        AutoencoderPhase(deterministic(), objective.model_copy(update={"regularizers": (TotalCorrelation(),)}))


@pytest.mark.parametrize("name", KINDS)
def test_a_discrete_latent_is_refused(name):
    config = KINDS[name]
    objective = objective_of({"nll": 1, "commitment": 1, config.kind: 1})
    with pytest.raises(ValueError, match=f"found {config.kind}, but the latent of a vq model is discrete"):
        AutoencoderPhase(vq(), objective.model_copy(update={"regularizers": (config,)}))


def test_a_term_without_a_weight_is_refused():
    objective = ObjectiveConfig.model_validate({"weights": {"nll": 1, "kl": 1}, "regularizers": [{"kind": "mmd"}]})
    with pytest.raises(ValueError, match="every term needs a weight"):
        AutoencoderPhase(vae(), objective)


@pytest.mark.parametrize(
    "twice",
    [
        {"regularizers": [{"kind": "mmd"}, {"kind": "mmd", "kernel": "rbf"}]},
        {"regularizers": [{"kind": "total_correlation"}], "discriminator": {"kind": "factor"}},
    ],
)
def test_a_term_named_twice_is_refused(twice):
    with pytest.raises(ValidationError, match=r"found 2 for the term (mmd|total_correlation), expected one"):
        ObjectiveConfig.model_validate({"weights": {"nll": 1}, **twice})


def test_an_estimator_that_weighs_the_gradient_of_latents_is_refused():
    content = {"weights": {"nll": 1}, "gradient_estimator": "doubly_reparameterized", "regularizers": [{"kind": "mmd"}]}
    with pytest.raises(ValidationError, match="found mmd with gradient_estimator: doubly_reparameterized"):
        ObjectiveConfig.model_validate(content)


def test_rows_are_the_draws_of_one_image_after_those_of_another():
    z = torch.arange(2 * 3 * 4.0).view(2, 3, 2, 1, 2)
    assert torch.equal(latent_rows(z), torch.arange(24.0).view(6, 4))
