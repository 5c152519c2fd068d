"""Prompts of an image pipeline: captions in, the tokenizer of captions in its folder, mistakes named."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from pipelines.base.errors import DataWarning, UserError
from pipelines.models.checkpoint import LoadedPrior, load_prior, load_tokenizer
from pipelines.models.conditions import ImageCondition
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.tokens.dataset import TokenDataset
from prior import CaptionTokenizer, PriorConfig, TokenPrior, TransformerConfig, Vocabulary, sequence_logprobs

TINY = TransformerConfig(dim=16, depth=1, heads=1, head_dim=16)
LENGTH = 12
PROMPTS = ["a small red circle", "A LARGE blue cross", "a small red circle"]


def build(tokens: Path, **config) -> ImageGenerationPipeline:
    """An untrained prior by caption over the tokens."""
    dataset = TokenDataset.open(tokens)
    captions = CaptionTokenizer.train([text for text in dataset.split("train").texts if text], 300)
    levels = [(grid.num_codes, grid.axes) for grid in dataset.spec.code_grids]
    vocabulary = Vocabulary.of_caption_and_levels(levels, captions.num_words, LENGTH)
    torch.manual_seed(0)
    prior = TokenPrior(PriorConfig(vocabulary=vocabulary, transformer=TINY, **config)).eval()
    with torch.no_grad():
        prior.network.token_embedding.weight.mul_(3)  # a caption changes many codes
    loaded = LoadedPrior(prior, dataset.spec, None, tokens / "prior", captions)
    return ImageGenerationPipeline(load_tokenizer(dataset.tokenizer_folder), loaded)


@pytest.fixture(scope="module")
def pipe(tiny_tokens):
    return build(tiny_tokens)


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    return pipe.save_pretrained(tmp_path_factory.mktemp("prompts") / "image_pipeline")


def draw(pipe, prompt=PROMPTS, **arguments):
    return pipe(prompt, **{"generator": 7, "output_type": "pt"} | arguments)


def test_the_folder_moves_as_a_whole_and_draws_the_same(pipe, saved, tmp_path):
    moved = ImageGenerationPipeline.from_pretrained(shutil.copytree(saved, tmp_path / "elsewhere"))
    assert moved.takes_captions and moved.num_classes is None and moved.classes is None
    before, after = draw(pipe), draw(moved)
    assert torch.equal(before.tokens, after.tokens) and torch.equal(before.images, after.images)


def test_the_prior_reads_the_words_of_the_prompt(pipe):
    out = draw(pipe)
    words = pipe.prior.captions.encode(PROMPTS, LENGTH)
    assert torch.allclose(out.logprobs, sequence_logprobs(pipe.prior.model, out.tokens, words), atol=1e-4)
    assert not torch.equal(
        draw(pipe, "a small red circle", generator=[1]).tokens, draw(pipe, "x", generator=[1]).tokens
    )


def test_without_a_prompt_the_caption_is_null(pipe):
    out = draw(pipe, None, num_images_per_prompt=2)
    assert out.prompts == [None, None] and out.labels == [None, None]
    assert torch.allclose(out.logprobs, sequence_logprobs(pipe.prior.model, out.tokens), atol=1e-4)
    assert pipe.condition_values([ImageCondition()]) is None


def test_prompts_are_given_back_as_they_were_and_not_changed(pipe):
    given = list(PROMPTS)
    out = draw(pipe, given, num_images_per_prompt=2)
    assert out.prompts == [text for text in PROMPTS for _ in range(2)] and given == PROMPTS
    assert out.prompts is not given and out.labels == [None] * 6


def test_an_image_depends_on_its_seed_and_prompt_only(pipe):
    whole = draw(pipe, batch_size=3)
    assert torch.equal(draw(pipe, batch_size=2).tokens, whole.tokens)
    assert torch.equal(draw(pipe, PROMPTS[1], generator=[whole.seeds[1]]).tokens[0], whole.tokens[1])


def test_case_and_white_space_do_not_matter(pipe):
    one, other = (draw(pipe, text, generator=[3]).tokens for text in ("A  Small\tred circle ", "a small red circle"))
    assert torch.equal(one, other)


def test_guidance_goes_from_the_null_caption_to_the_prompt(pipe):
    assert torch.equal(draw(pipe, guidance_scale=1.0).tokens, draw(pipe).tokens)
    assert not torch.equal(draw(pipe, guidance_scale=4.0).tokens, draw(pipe).tokens)
    null = draw(pipe, None, num_images_per_prompt=3)
    assert torch.equal(draw(pipe, guidance_scale=0.0).tokens, null.tokens)


def test_a_long_prompt_is_cut_off_with_one_warning(tiny_tokens):
    pipe = build(tiny_tokens)
    long = "a small red circle " * 20
    with pytest.warns(DataWarning, match=rf"prompt: 'a small red.*' has \d+ tokens; those after the first {LENGTH}"):
        found = draw(pipe, [long, long])
    assert torch.equal(found.tokens, draw(pipe, [long, long]).tokens)  # a second warning would be an error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": []}, "prompt: found an empty list"),
        ({"prompt": ["a", 3]}, "prompt: found 3, expected text"),
        ({"prompt": "a", "label": 0}, "prompt: found 'a' beside the label 0, expected one of them"),
        ({"prompt": None, "label": "red circle"}, "label: found 'red circle', but this prior was trained on captions"),
        ({"prompt": None, "guidance_scale": 2.0}, "guidance_scale needs a prompt, got .*, and no prompt was given"),
    ],
)
def test_mistakes_are_named(pipe, arguments, words):
    with pytest.raises(UserError, match=words):
        draw(pipe, **arguments)


def test_a_prior_by_label_takes_no_prompt(image_pipeline):
    pipe = ImageGenerationPipeline.from_pretrained(image_pipeline)
    with pytest.raises(UserError, match="prompt: found 'a red circle', but this prior was trained on labels"):
        draw(pipe, "a red circle")
    assert draw(pipe, None, label="red circle").prompts == [None]


def test_a_null_caption_that_was_never_trained_is_refused(tiny_tokens):
    untrained = build(tiny_tokens, condition_dropout=0.0)
    with pytest.raises(UserError, match=r"prompt: found none, expected one: .* condition_dropout=0"):
        draw(untrained, None)
    with pytest.raises(UserError, match=r"guidance_scale: found 2\.0, expected 1: .* condition_dropout=0"):
        draw(untrained, guidance_scale=2.0)


# Folders


@pytest.fixture
def prior(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved / "prior", tmp_path / "prior"))


def edit(prior: Path, change) -> None:
    config = json.loads((prior / "config.json").read_text())
    change(config)
    (prior / "config.json").write_text(json.dumps(config))


def put_captions(prior: Path, text: str) -> None:
    """Another `captions.json`, of which config.json knows."""
    (prior / "captions.json").write_text(text)
    edit(prior, lambda config: config.update(captions_sha256=sha256(text.encode()).hexdigest()))


def test_a_prior_without_its_captions_is_refused(prior):
    (prior / "captions.json").unlink()
    with pytest.raises(UserError, match=r"captions\.json: missing"):
        load_prior(prior)


def test_damaged_captions_are_refused_by_their_hash(prior):
    content = (prior / "captions.json").read_text()
    (prior / "captions.json").write_text(content.replace("circle", "circus"))
    with pytest.raises(UserError, match=r"captions\.json: sha256 is .*, config\.json says .*: corrupted"):
        load_prior(prior)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"model": 3}', '{"a": 1, "a": 2}', "[" * 10_000])
def test_captions_that_are_no_tokenizer_are_refused(prior, text):
    put_captions(prior, text)
    with pytest.raises(UserError, match=r"captions\.json: "):
        load_prior(prior)


def test_captions_of_another_size_are_refused(prior):
    put_captions(prior, CaptionTokenizer.train(["a cat", "a cat"], 256).to_json())
    with pytest.raises(UserError, match=r"captions\.json: has 256 words, but the network knows \d+"):
        load_prior(prior)


@pytest.mark.parametrize("number", [2, 1000, 10**9, 10**12, 10**30])
@pytest.mark.parametrize("key", ["size", "shape"])
def test_other_captions_than_the_weights_know_are_refused_before_anything_is_allocated(prior, key, number):
    value = number if key == "size" else [number]
    edit(prior, lambda config: config["model"]["vocabulary"]["segments"][0].update({key: value}))
    with pytest.raises(UserError, match=r"config\.json|captions\.json"):
        load_prior(prior)


@pytest.mark.parametrize("by_caption", [True, False])
def test_captions_and_their_hash_go_together(prior, image_pipeline, by_caption, tmp_path):
    folder = prior if by_caption else Path(shutil.copytree(image_pipeline / "prior", tmp_path / "by_label"))
    edit(folder, lambda config: config.update(captions_sha256=None if by_caption else "0" * 64))
    with pytest.raises(UserError, match=r"captions_sha256: found (none|one), but the condition of the network is"):
        load_prior(folder)


def test_a_prior_by_label_that_was_saved_before_there_were_captions_loads(image_pipeline, tmp_path):
    folder = Path(shutil.copytree(image_pipeline, tmp_path / "old"))

    def as_before(config):
        del config["captions_sha256"]
        for name in ("text_weight", "predict_pads"):
            del config["model"][name]
        for segment in config["model"]["vocabulary"]["segments"]:
            del segment["pads"]

    edit(folder / "prior", as_before)
    old, new = (ImageGenerationPipeline.from_pretrained(each) for each in (folder, image_pipeline))
    assert torch.equal(draw(old, None, label=[0, 1]).tokens, draw(new, None, label=[0, 1]).tokens)


def test_saving_a_prior_by_label_leaves_no_captions_of_another(saved, image_pipeline, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "p"))
    ImageGenerationPipeline.from_pretrained(image_pipeline).save_pretrained(folder, overwrite=True)
    assert not (folder / "prior" / "captions.json").exists()
    assert ImageGenerationPipeline.from_pretrained(folder).num_classes
