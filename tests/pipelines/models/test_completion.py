"""Completing images in Python: kept tokens stay, a completion depends on its seed alone, mistakes are named."""

import pytest
import torch
from PIL import Image

from pipelines import complete_images
from pipelines.base.errors import UserError
from pipelines.base.image_grids import to_pil
from pipelines.data import open_images
from pipelines.encode import encode
from pipelines.models.checkpoint import LoadedPrior, load_tokenizer
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.models.image_seeds import image_seeds
from pipelines.models.masked_images import mask_images
from pipelines.tokens.dataset import TokenDataset
from prior import PriorConfig, SamplingOptions, SamplingRequest, TokenPrior, TransformerConfig, Vocabulary, generate
from tests.pipelines.conftest import read_example, shapes_data
from tests.pipelines.models import test_prompts
from tests.pipelines.test_levels import BOTTLENECK

TINY = TransformerConfig(dim=16, depth=1, heads=1, head_dim=16)
BOTTLENECKS = {
    "one quantizer": {"kind": "vq", "num_codes": 64, "dim": 8},
    "two quantizers": {"kind": "vq", "num_codes": 16, "dim": 8, "num_quantizers": 2},
    "two levels": BOTTLENECK,
}
LOWER = torch.zeros(32, 32, dtype=torch.bool)
LOWER[16:] = True
MIDDLE = torch.zeros(32, 32, dtype=torch.bool)
MIDDLE[10:20, 12:22] = True


def build(folder, bottleneck, make_tokenizer) -> ImageGenerationPipeline:
    """An untrained prior by label over the tokens of an untrained tokenizer."""
    make_tokenizer(folder / "tokenizer", bottleneck)
    encode(folder / "tokenizer", shapes_data(train=8, validation=4, test=4), folder / "tokens", num_shards=1)
    spec = TokenDataset.open(folder / "tokens").spec
    levels = [(grid.num_codes, grid.axes) for grid in spec.code_grids]
    torch.manual_seed(0)
    config = PriorConfig(vocabulary=Vocabulary.of_labels_and_levels(levels, len(spec.classes or ())), transformer=TINY)
    prior = TokenPrior(config).eval()
    with torch.no_grad():
        prior.network.token_embedding.weight.mul_(3)  # what is kept changes many draws
    loaded = LoadedPrior(prior, spec, spec.classes, folder / "prior")
    return ImageGenerationPipeline(load_tokenizer(folder / "tokenizer"), loaded)


@pytest.fixture(scope="module", params=BOTTLENECKS.values(), ids=BOTTLENECKS)
def every_pipe(request, make_tokenizer, tmp_path_factory):
    return build(tmp_path_factory.mktemp("complete"), request.param, make_tokenizer)


@pytest.fixture(scope="module")
def pipe(make_tokenizer, tmp_path_factory):
    return build(tmp_path_factory.mktemp("complete"), BOTTLENECKS["one quantizer"], make_tokenizer)


@pytest.fixture(scope="module")
def images():
    rows = open_images(shapes_data(train=8, test=4), "test")
    return torch.stack([read_example(rows, row).image for row in range(3)])


def complete(pipe, images, mask=MIDDLE, **arguments):
    return complete_images(pipe, images, mask, **{"generator": 7, "output_type": "pt"} | arguments)


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("mask", [LOWER, MIDDLE], ids=["lower half", "middle"])
def test_kept_tokens_stay_and_the_others_are_drawn(every_pipe, images, mask, candidates):
    out = complete(every_pipe, images, mask, num_candidates=candidates, label=[0, 1, 2])
    codes = mask_images(every_pipe, images, mask).codes
    assert 0 < out.redrawn.sum() < out.redrawn.numel()
    assert torch.equal(out.tokens[~out.redrawn], codes[~out.redrawn])
    assert (out.tokens[out.redrawn] != codes[out.redrawn]).any()


def test_codes_are_those_of_the_token_dataset(every_pipe, images):
    dataset = TokenDataset.open(every_pipe.tokenizer.folder.parent / "tokens")
    stored = dataset.split("test").part(range(3)).codes(slice(None))
    assert torch.equal(mask_images(every_pipe, images, LOWER).codes, stored.long())


def test_only_kept_tokens_before_all_redrawn_ones_are_exact(every_pipe, images):
    several = len(every_pipe.prior.spec.code_grids) > 1
    assert complete(every_pipe, images, LOWER).exact != several
    assert not complete(every_pipe, images, MIDDLE).exact


def test_a_prefix_is_completed_as_the_prior_would(pipe, images):
    out = complete(pipe, images, LOWER, label=2)
    kept = mask_images(pipe, images, LOWER).codes.flatten(1)[:, :32]
    seeds = [image_seeds(seed, 1)[0] for seed in out.seeds]
    expected = generate(pipe.prior.model, SamplingRequest(seeds, torch.full((3,), 2), SamplingOptions(), kept))
    assert torch.equal(out.tokens, expected.codes)
    torch.testing.assert_close(out.logprobs, expected.logprobs)


def test_candidates_are_not_drawn_where_they_would_all_count_alike(pipe, images, monkeypatch):
    one = complete(pipe, images, LOWER)
    from pipelines.models import completion

    sizes = []
    monkeypatch.setattr(
        completion, "generate", lambda *given, **named: sizes.append(len(given[1].seeds)) or generate(*given, **named)
    )
    many = complete(pipe, images, LOWER, num_candidates=50)
    assert sum(sizes) == 3 and len(many.tokens) == len(one.tokens) and (many.effective_candidates == 1).all()
    complete(pipe, images, MIDDLE, num_candidates=5)
    assert sum(sizes) == 3 + 15


def test_a_completion_depends_on_neither_batch_nor_neighbours(pipe, images):
    whole = complete(pipe, images, label=[3, 4, 5], num_images_per_prompt=2, num_candidates=4)
    for batch_size in (1, 5):
        again = complete(
            pipe, images, label=[3, 4, 5], num_images_per_prompt=2, num_candidates=4, batch_size=batch_size
        )
        assert torch.equal(again.tokens, whole.tokens) and torch.equal(again.images, whole.images)
    alone = complete(pipe, images[1], label=4, num_candidates=4, generator=[whole.seeds[3]])
    assert torch.equal(alone.tokens[0], whole.tokens[3]) and torch.equal(alone.images[0], whole.images[3])


def test_each_image_may_have_a_mask_of_its_own(pipe, images):
    masks = torch.stack([LOWER, MIDDLE, LOWER | MIDDLE])
    out = complete(pipe, images, masks, num_candidates=3)
    for row in range(3):
        alone = complete(pipe, images[row], masks[row], num_candidates=3, generator=[out.seeds[row]])
        assert torch.equal(alone.tokens[0], out.tokens[row])
    assert not out.exact


def test_more_candidates_make_the_kept_tokens_after_a_draw_likelier(pipe, images):
    def later(candidates):
        out = complete(pipe, images, num_images_per_prompt=10, num_candidates=candidates)
        first = out.redrawn.flatten(1).int().argmax(1)
        after = ~out.redrawn.flatten(1) & (torch.arange(64) > first[:, None])
        return out.logprobs[after].sum().item()

    assert later(20) > later(1)


def test_the_original_pixels_come_back_only_when_asked_for(pipe, images):
    original = (images / 255)[:, :, ~MIDDLE]
    pasted, decoded = complete(pipe, images, paste_original=True), complete(pipe, images)
    assert torch.equal(torch.as_tensor(pasted.images)[:, :, ~MIDDLE], original)
    assert torch.equal(torch.as_tensor(decoded.images), pipe.decode(decoded.tokens))
    assert not torch.equal(torch.as_tensor(decoded.images)[:, :, ~MIDDLE], original)


def test_a_margin_redraws_more(pipe, images):
    near, wide = complete(pipe, images), complete(pipe, images, margin=5)
    assert (wide.redrawn | ~near.redrawn).all() and wide.redrawn.sum() > near.redrawn.sum()


def test_pil_images_and_masks_are_prepared_as_in_training(pipe, images):
    pictures = [to_pil(image).resize((64, 64), Image.Resampling.NEAREST) for image in images]
    mask = to_pil(MIDDLE[None].float()).resize((64, 64), Image.Resampling.NEAREST)
    out = complete(pipe, pictures, mask, output_type="pil")
    assert torch.equal(out.redrawn, complete(pipe, images).redrawn)
    assert [image.size for image in out.images] == [(32, 32)] * 3


def test_prompts_and_guidance_work_as_in_a_call(tiny_tokens, images):
    pipe = test_prompts.build(tiny_tokens)
    out = complete(pipe, images, prompt=["a red circle", "a blue cross", "x"], guidance_scale=30.0, num_candidates=2)
    assert torch.equal(out.tokens[~out.redrawn], mask_images(pipe, images, MIDDLE).codes[~out.redrawn])
    plain = complete(pipe, images, prompt=["a red circle", "a blue cross", "x"], num_candidates=2)
    assert not torch.equal(out.tokens, plain.tokens)


def test_greedy_takes_the_most_likely_token_at_each_redrawn_place(pipe, images):
    out = complete(pipe, images, do_sample=False)
    best = pipe.prior.model(out.tokens).argmax(-1).view_as(out.tokens)
    assert torch.equal(best[out.redrawn], out.tokens[out.redrawn])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": torch.zeros(32, 32, dtype=torch.bool)}, "mask_image: marks no pixel"),
        ({"mask": torch.ones(16, 16, dtype=torch.bool)}, r"mask_image: found \(16, 16\)"),
        ({"mask": torch.ones(32, 32)}, "mask_image: found .* of torch.float32"),
        ({"mask": LOWER.expand(2, 32, 32)}, "mask_image: found 2 masks for 3 images"),
        ({"mask": []}, "mask_image: found an empty list"),
        ({"images": []}, "image: found an empty list"),
        ({"images": torch.zeros(1, 3, 16, 16)}, r"image: found the shape \(1, 3, 16, 16\), expected \(n, 3, 32, 32\)"),
        (
            {"images": torch.full((1, 3, 32, 32), 255.0)},
            "image: found 255 to 255 in a tensor of torch.float32, expected 0",
        ),
        ({"images": torch.full((1, 3, 32, 32), torch.nan)}, "image: found nan to nan"),
        ({"generator": [0, 1, 2**70]}, "generator: found the seed 1180591620717411303424, expected 0 to"),
        ({"label": [0, 1]}, "label: found 2 for 3 images"),
        ({"label": "cat"}, "label: found 'cat'"),
        ({"margin": -1}, "margin: found -1"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: found 0"),
        ({"num_candidates": 0}, "num_candidates"),
        ({"num_candidates": 2, "do_sample": False}, "num_candidates: found 2, expected 1"),
        ({"output_type": "jpg"}, "output_type: found 'jpg'"),
        ({"top_k": 0}, "top_k: found 0"),
    ],
    ids=str,
)
def test_a_mistake_is_named(pipe, images, arguments, message):
    with pytest.raises(UserError, match=message):
        complete(pipe, **{"images": images} | arguments)
