"""DALL-E's dVAE as its recipe says, 256 x 256 pixels and 97.6 M weights: one step of training."""

import pytest
import torch

from pipelines.recipes.stages import TokenizerRecipe, load_recipe
from pipelines.training.optimizer import build_optimizer
from tokenizer import Autoencoder, AutoencoderPhase


@pytest.mark.slow
def test_a_step_of_the_full_size_trains_every_weight():
    recipe = load_recipe("configs/dalle1/dvae.yaml")
    assert isinstance(recipe, TokenizerRecipe)
    torch.manual_seed(0)
    phase = AutoencoderPhase(Autoencoder(recipe.model), recipe.objective).train()
    parameters = phase.trained_parameters()
    assert sum(parameter.numel() for parameter in parameters.values()) == 97_616_006
    optimizer = build_optimizer(recipe.training.optimizer, parameters)
    before = {name: parameter.detach().double().sum() for name, parameter in parameters.items()}
    loss, metrics = phase({"image": torch.rand(1, 3, 256, 256)}, recipe.training.steps)
    loss.backward()
    optimizer.step()
    assert loss.isfinite() and all(value.isfinite() for value in metrics.values())
    still = [name for name, parameter in parameters.items() if parameter.detach().double().sum() == before[name]]
    assert not still, still
