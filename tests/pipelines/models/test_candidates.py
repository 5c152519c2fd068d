"""Candidates of an image pipeline: those that a rerank chooses are images that it draws anyway."""

import pytest
import torch

from pipelines.base.errors import UserError
from pipelines.models.image_pipeline import ImageGenerationPipeline
from prior import sequence_logprobs


@pytest.fixture(scope="module")
def pipe(image_pipeline):
    return ImageGenerationPipeline.from_pretrained(image_pipeline)


def draw(pipe, label=(0, 2), **arguments):
    return pipe(label=label, **{"generator": 5, "output_type": "pt"} | arguments)


def redness(images, text):
    return images[:, 0].mean((1, 2))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_the_best_candidates_of_each_label_are_kept_best_first(pipe, batch_size):
    all_drawn = draw(pipe, num_images_per_prompt=4)
    found = draw(pipe, num_images_per_prompt=2, num_candidates=4, rerank=redness, batch_size=batch_size)
    scores = redness(all_drawn.images, None).view(2, 4)
    rows = (scores.argsort(dim=1, descending=True, stable=True)[:, :2] + torch.tensor([[0], [4]])).flatten()
    assert torch.equal(found.images, all_drawn.images[rows]) and torch.equal(found.tokens, all_drawn.tokens[rows])
    assert found.seeds == [all_drawn.seeds[row] for row in rows] and found.labels == [0, 0, 2, 2]
    torch.testing.assert_close(found.scores, scores.flatten()[rows])
    torch.testing.assert_close(found.logprobs, all_drawn.logprobs[rows], atol=1e-5, rtol=0)
    assert all_drawn.scores is None


def test_a_candidate_comes_back_alone_from_its_seed(pipe):
    kept = draw(pipe, 1, num_candidates=5, rerank=redness)
    assert torch.equal(draw(pipe, 1, generator=kept.seeds).images, kept.images)


def test_the_default_is_the_likelihood_of_the_image_with_its_label(pipe):
    found = draw(pipe, num_images_per_prompt=3, num_candidates=3)
    expected = sequence_logprobs(pipe.prior.model, found.tokens, torch.tensor(found.labels)).sum(1)
    torch.testing.assert_close(found.scores, expected, atol=1e-3, rtol=0)
    assert found.scores[:3].diff().max() <= 0 and found.scores[3:].diff().max() <= 0


def test_the_ratio_is_the_likelihood_of_the_image_with_its_label_over_that_without(pipe):
    found = draw(pipe, num_images_per_prompt=3, num_candidates=3, rerank="likelihood_ratio")
    model, labels = pipe.prior.model, torch.tensor(found.labels)
    expected = (sequence_logprobs(model, found.tokens, labels) - sequence_logprobs(model, found.tokens)).sum(1)
    torch.testing.assert_close(found.scores, expected, atol=1e-3, rtol=0)
    assert found.scores[:3].diff().max() <= 0 and found.scores[3:].diff().max() <= 0


def test_a_function_is_told_the_name_of_the_label_and_nothing_without_one(pipe):
    seen = []

    def note(images, text):
        seen.append((text, len(images)))
        return range(len(images))

    draw(pipe, num_candidates=3, rerank=note)
    draw(pipe, None, num_candidates=2, rerank=note)
    assert seen == [(pipe.classes[0], 3), (pipe.classes[2], 3), (None, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_candidates": 0}, "num_candidates: found 0"),
        ({"num_candidates": 4, "num_images_per_prompt": 0}, "num_images_per_prompt: found 0, expected at least 1"),
        ({"num_candidates": 4, "num_images_per_prompt": -1}, "num_images_per_prompt: found -1"),
        ({"generator": [0, -1]}, "generator: found the seed -1, expected 0 to"),
        ({"num_candidates": 2, "num_images_per_prompt": 3}, "num_candidates: found 2, expected at least the 3 images"),
        ({"rerank": "likelihood"}, "rerank: needs num_candidates"),
        ({"num_candidates": 2, "rerank": "best"}, "rerank: found 'best'"),
        ({"num_candidates": 2, "label": None}, "rerank: 'likelihood' compares images with their prompt or label"),
        ({"num_candidates": 2, "rerank": lambda images, text: [1.0]}, r"shape \(1,\), expected \(2,\)"),
    ],
)
def test_what_cannot_be_chosen_is_refused(pipe, arguments, message):
    with pytest.raises(UserError, match=message):
        draw(pipe, **arguments)
