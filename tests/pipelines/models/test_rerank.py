"""Scores of candidates: the prior's own, those of a tiny CLIP made here, and those of any function."""

import importlib.util
import json
from typing import Any

import pytest
import torch

from pipelines.base.errors import UserError
from pipelines.models import rerank_clip
from pipelines.models.rerank import DrawnImages, keep_best, open_scorer
from pipelines.models.rerank_clip import ClipScorer
from prior import GenerationOutput, PriorConfig, TokenPrior, TransformerConfig, Vocabulary, generate, sequence_logprobs
from prior import SamplingRequest as Request

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers, the extra `clip`, is not installed"
)
SIZE, WORDS = 8, 5


def make_prior(condition_dropout=0.1):
    torch.manual_seed(0)
    vocabulary = Vocabulary.of_labels_and_codes(7, (2, 2, 1), 3)
    transformer = TransformerConfig(dim=16, depth=1, heads=1, head_dim=16)
    config = PriorConfig(vocabulary=vocabulary, transformer=transformer, condition_dropout=condition_dropout)
    return TokenPrior(config).eval()


def candidates(images):
    nothing = GenerationOutput(torch.zeros(len(images), 2, 2, 1, dtype=torch.long), torch.zeros(len(images), 4))
    return DrawnImages(torch.arange(len(images)), images, nothing)


def random_images(n, channels=3):
    return torch.rand(n, channels, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP with random weights, whose words are single letters."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTextConfig,
        CLIPTokenizer,
        CLIPVisionConfig,
    )

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) + end for end in ("", "</w>") for code in range(ord("a"), ord("z") + 1)]
    words = {word: i for i, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    layer = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": words["<|startoftext|>"], "eos_token_id": words["<|endoftext|>"]}
    text = CLIPTextConfig(**layer, vocab_size=len(words), max_position_embeddings=WORDS, **ends)
    vision = CLIPVisionConfig(**layer, image_size=SIZE, patch_size=4)
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=WORDS)
    CLIPProcessor(CLIPImageProcessor(**sizes), tokenizer).save_pretrained(folder)
    return folder


@needs_transformers
@pytest.mark.parametrize("channels", [1, 3])
def test_clip_scores_are_the_similarity_of_image_and_text(clip_folder, monkeypatch, channels):
    from transformers import CLIPModel, CLIPProcessor

    monkeypatch.setattr(rerank_clip, "IMAGES_PER_PASS", 2)  # several passes, the last one smaller
    images = random_images(5, channels)
    found = open_scorer(f"clip:{clip_folder}", make_prior(), True)(candidates(images), "red")
    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor: Any = CLIPProcessor.from_pretrained(clip_folder)
    levels = [(image.expand(3, -1, -1) * 255).round().byte().numpy() for image in images]
    inputs = processor(text=["red"], images=levels, return_tensors="pt", input_data_format="channels_first")
    with torch.no_grad():
        outputs = model(**inputs)
        expected = torch.cosine_similarity(outputs.image_embeds, outputs.text_embeds) * model.logit_scale.exp()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert len(found.unique()) == 5


@needs_transformers
def test_clip_compares_with_the_text(clip_folder):
    scorer, images = open_scorer(f"clip:{clip_folder}", make_prior(), True), random_images(3)
    assert not torch.equal(scorer(candidates(images), "red"), scorer(candidates(images), "blue"))
    assert [path.name for path in scorer.weights] == ["model.safetensors"]


@needs_transformers
def test_clip_cuts_a_long_text_off(clip_folder):
    scorer, images = ClipScorer(str(clip_folder), torch.device("cpu")), random_images(3)
    assert torch.equal(scorer(images, "a b c d e f g"), scorer(images, "a b c"))


@needs_transformers
def test_loading_shows_nothing_of_the_library(clip_folder, capfd):
    open_scorer(f"clip:{clip_folder}", make_prior(), True)
    assert capfd.readouterr() == ("", "")


@needs_transformers
def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"rerank: .* holds no \*.safetensors"):
        open_scorer(f"clip:{tmp_path}", make_prior(), True)


@needs_transformers
def test_a_folder_that_is_no_clip_is_refused(tmp_path, clip_folder):
    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match=r"rerank: .* cannot be read as a CLIP model"):
        open_scorer(f"clip:{tmp_path}", make_prior(), True)


@needs_transformers
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"torn"),
        ("config.json", b'{"model_type": "clip", "projection_dim": "x"}'),
        ("config.json", b'{"model_type": "clip", "projection_dim": 3}'),
        ("tokenizer.json", b"{"),
    ],
    ids=["weights", "type", "sizes", "words"],
)
def test_a_damaged_clip_is_refused(tmp_path, clip_folder, file, content):
    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=r"rerank: .* cannot be read as a CLIP model"):
        open_scorer(f"clip:{tmp_path}", make_prior(), True)


def test_clip_without_transformers_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install smalti\[clip\]"):
        open_scorer(f"clip:{tmp_path}", make_prior(), True)


@pytest.mark.parametrize("rerank", ["likelihood", "likelihood_ratio"])
def test_the_likelihoods_are_those_of_the_prior(rerank):
    prior, labels = make_prior(), torch.tensor([0, 1, 2, 0])
    drawn = generate(prior, Request(range(4), labels))
    found = open_scorer(rerank, prior, True)(DrawnImages(torch.arange(4), random_images(4), drawn), "red")
    expected = sequence_logprobs(prior, drawn.codes, labels)
    if rerank == "likelihood_ratio":
        expected = expected - sequence_logprobs(prior, drawn.codes)
    torch.testing.assert_close(found, expected.sum(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rerank", ["likelihood", "likelihood_ratio"])
def test_of_equal_candidates_the_first_is_kept_however_their_likelihood_is_rounded(rerank):
    codes = torch.tensor([2, 1, 2, 3, 1, 1])[:, None, None, None].expand(-1, 2, 2, 1)
    rounded = torch.full((6, 4), -0.5)
    rounded[[2, 4, 5]] += 1e-5  # as in other batches
    drawn = DrawnImages(torch.arange(6), random_images(6), GenerationOutput(codes, rounded))
    kept = keep_best(drawn, ["red"], open_scorer(rerank, make_prior(), True), 6).rows.tolist()
    assert kept.index(0) < kept.index(2) and kept.index(1) < kept.index(4) < kept.index(5)


def test_the_likelihood_needs_no_null_condition():
    drawn = candidates(random_images(3))
    assert open_scorer("likelihood", make_prior(condition_dropout=0.0), True)(drawn, "red").tolist() == [0.0] * 3


@pytest.mark.parametrize("as_given", [torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.double])
def test_a_function_is_given_images_and_text(as_given):
    seen = []

    def brightness(images, text):
        seen.append(text)
        return as_given(images.mean((1, 2, 3)))

    images = random_images(4)
    scores = open_scorer(brightness, make_prior(), False)(candidates(images), "a red circle")
    torch.testing.assert_close(scores, images.mean((1, 2, 3)))
    assert seen == ["a red circle"]


@pytest.mark.parametrize(
    ("rerank", "conditional", "condition_dropout", "message"),
    [
        (
            "beauty",
            True,
            0.1,
            "rerank: found 'beauty', expected one of 'likelihood', 'likelihood_ratio', 'clip:FOLDER', or a function",
        ),
        ("likelihood", False, 0.1, "rerank: 'likelihood' compares images with their prompt or label"),
        ("clip:anything", False, 0.1, "rerank: 'clip:anything' compares images with their prompt or label"),
        ("clip:", True, 0.1, "rerank: found 'clip:', expected one of"),
        ("likelihood_ratio", True, 0.0, "condition_dropout=0"),
    ],
)
def test_what_cannot_rank_is_refused(rerank, conditional, condition_dropout, message):
    with pytest.raises(UserError, match=message):
        open_scorer(rerank, make_prior(condition_dropout), conditional)


@pytest.mark.parametrize(
    ("scores", "message"),
    [(torch.zeros(3), r"shape \(3,\), expected \(4,\)"), (torch.full((4,), torch.nan), "not numbers")],
)
def test_scores_that_are_none_are_refused(scores, message):
    with pytest.raises(UserError, match=message):
        open_scorer(lambda images, text: scores, make_prior(), True)(candidates(random_images(4)), "red")


def test_of_each_text_the_highest_scores_come_first_and_equals_keep_their_order():
    images = torch.tensor([1.0, 3.0, -torch.inf, 3.0, 2.0, 0.0, 0.0, 5.0]).view(8, 1, 1, 1)
    seen = []

    def scorer(group, text):
        seen.append((text, group.rows.tolist()))
        return group.images[:, 0, 0, 0]

    kept = keep_best(candidates(images), ["a", "b"], scorer, 3)
    assert kept.rows.tolist() == [1, 3, 0, 7, 4, 5]
    assert kept.scores.tolist() == kept.images.flatten().tolist() == [3.0, 3.0, 1.0, 5.0, 2.0, 0.0]
    assert seen == [("a", [0, 1, 2, 3]), ("b", [4, 5, 6, 7])]
