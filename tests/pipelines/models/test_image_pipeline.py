"""An image pipeline: one stream per image, a folder that moves as a whole, mistakes named."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from pipelines.base.errors import UserError
from pipelines.models import hub, image_pipeline
from pipelines.models.checkpoint import LoadedPrior, load_prior, load_tokenizer
from pipelines.models.image_pipeline import ImageGenerationPipeline, images_per_pass
from pipelines.models.image_seeds import image_seeds
from pipelines.tokens.dataset import TokenDataset
from prior import (
    CachedDecoder,
    PriorConfig,
    SamplingOptions,
    TokenPrior,
    TransformerConfig,
    Vocabulary,
    sequence_logprobs,
)

TINY = TransformerConfig(dim=16, depth=1, heads=1, head_dim=16)


def build(tokens, conditional=True, defaults=None, **config) -> ImageGenerationPipeline:
    dataset = TokenDataset.open(tokens)
    spec = dataset.spec
    classes = spec.classes if conditional else None
    vocabulary = Vocabulary.of_labels_and_codes(spec.num_codes, spec.grid, len(classes) if classes else None)
    torch.manual_seed(0)
    prior = TokenPrior(PriorConfig(vocabulary=vocabulary, transformer=TINY, **config)).eval()
    loaded = LoadedPrior(prior, spec, classes, tokens / "prior")
    return ImageGenerationPipeline(load_tokenizer(dataset.tokenizer_folder), loaded, defaults)


@pytest.fixture(scope="module")
def pipe(tiny_tokens):
    return build(tiny_tokens)


@pytest.fixture(scope="module")
def unconditional(tiny_tokens):
    return build(tiny_tokens, conditional=False)


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    return pipe.save_pretrained(tmp_path_factory.mktemp("pipelines") / "image_pipeline")


def draw(pipe, **arguments):
    return pipe(**{"label": [0, 1, 2], "generator": 7, "output_type": "pt"} | arguments)


def test_the_folder_moves_as_a_whole_and_draws_the_same(pipe, saved, tmp_path):
    moved = shutil.copytree(saved, tmp_path / "elsewhere" / "g")
    before, after = draw(pipe), draw(ImageGenerationPipeline.from_pretrained(moved))
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.images, after.images)
    assert torch.equal(before.logprobs, after.logprobs)


def test_the_output_of_a_run_stands_for_its_image_pipeline(saved):
    (saved.parent / "run").mkdir()
    shutil.copytree(saved, saved.parent / "run" / "image_pipeline")
    assert ImageGenerationPipeline.from_pretrained(saved.parent / "run").classes


def test_an_image_depends_on_its_seed_and_label_only(pipe):
    whole = draw(pipe, batch_size=3)
    for size in (1, 2):
        again = draw(pipe, batch_size=size)
        assert torch.equal(again.tokens, whole.tokens) and torch.equal(again.images, whole.images)
    alone = draw(pipe, label=2, generator=[whole.seeds[2]])
    assert torch.equal(alone.tokens[0], whole.tokens[2])
    longer = draw(pipe, label=[0, 1, 2, 3])
    assert torch.equal(longer.tokens[:3], whole.tokens)


def test_seeds_of_a_call_are_all_different_and_depend_on_the_seed():
    seeds = image_seeds(0, 20_000)
    assert len(set(seeds)) == 20_000
    assert len({seed % 2**32 for seed in seeds}) == 20_000  # what PyTorch's generator can tell apart
    assert not set(seeds[:1000]) & set(image_seeds(1, 1000))
    assert image_seeds(0, 5) == seeds[:5]


def test_the_generator_may_be_a_torch_generator_or_nothing(pipe):
    one, two = (draw(pipe, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.seeds == two.seeds
    assert draw(pipe, generator=None).seeds != draw(pipe, generator=None).seeds


def test_images_of_a_label_stand_side_by_side_and_names_are_numbers(pipe):
    name = pipe.classes[3]
    out = draw(pipe, label=[name, 1], num_images_per_prompt=2)
    assert out.labels == [3, 3, 1, 1]
    assert torch.equal(out.tokens, draw(pipe, label=[3, 3, 1, 1]).tokens)
    assert torch.equal(draw(pipe, label="3").tokens, draw(pipe, label=name).tokens)


def test_logprobs_are_those_of_the_prior_as_trained(pipe):
    out = draw(pipe, temperature=0.5, top_k=3, guidance_scale=3.0)
    expected = sequence_logprobs(pipe.prior.model, out.tokens, torch.tensor(out.labels))
    assert torch.allclose(out.logprobs, expected, atol=1e-4)


def test_output_types_hold_the_same_pixels(pipe):
    tensor, array, pictures = (draw(pipe, output_type=kind).images for kind in ("pt", "np", "pil"))
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert tensor.min() >= 0 and tensor.max() <= 1
    assert [np.asarray(p).tolist() for p in pictures] == (tensor * 255).round().permute(0, 2, 3, 1).tolist()


def test_the_callback_sees_every_code(pipe):
    seen = torch.full((3, 64), -1)

    def look(pipeline, step, steps, found):
        assert pipeline is pipe and steps == 64
        seen[list(found["images"]), step] = found["codes"]

    out = draw(pipe, batch_size=2, callback_on_step_end=look)
    assert torch.equal(seen, out.tokens.flatten(1))


def test_defaults_of_the_folder_apply_and_none_switches_them_off(tiny_tokens, pipe, tmp_path):
    greedy_like = build(tiny_tokens, defaults=SamplingOptions(top_k=1, guidance_scale=1.0))
    folder = greedy_like.save_pretrained(tmp_path / "g")
    loaded = ImageGenerationPipeline.from_pretrained(folder)
    assert torch.equal(draw(loaded).tokens, draw(pipe, top_k=1).tokens)
    assert torch.equal(draw(loaded, top_k=None).tokens, draw(pipe).tokens)
    assert torch.equal(draw(loaded, do_sample=False).tokens, draw(pipe, do_sample=False).tokens)


def test_default_guidance_is_left_out_where_there_is_no_label(tiny_tokens):
    guided = build(tiny_tokens, defaults=SamplingOptions(guidance_scale=2.0))
    assert guided.options(conditional=False).guidance_scale == 1
    assert guided.options(conditional=True).guidance_scale == 2


def test_sampling_in_half_precision_runs(saved):
    pipe = ImageGenerationPipeline.from_pretrained(saved, dtype=torch.bfloat16)
    out = draw(pipe)
    assert isinstance(out.images, torch.Tensor)
    assert out.images.dtype == torch.float32 and out.images.isfinite().all()
    with pytest.raises(UserError, match=r"cast to torch\.bfloat16"):
        pipe.save_pretrained(saved.parent / "never")
    assert not (saved.parent / "never").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label": "purple elephant"}, "'purple elephant', expected .* a class name: red circle"),
        ({"label": 10_000}, "label: found 10000, expected 0 to"),
        ({"label": []}, "empty list"),
        ({"top_p": 0.9, "do_sample": False}, "top_p needs do_sample=True, got top_p=0.9"),
        ({"temperature": 0.0}, "temperature: found 0.0, expected: greater than 0"),
        ({"topp": 0.9}, "topp: unknown sampling option, expected one of temperature, top_k, top_p"),
        ({"guidance_scale": 2.0, "label": None}, "guidance_scale needs a label, got guidance_scale=2.0, and no label"),
        ({"generator": [1]}, "found 1 seeds, expected one for each of the 3"),
        ({"output_type": "jpeg"}, "output_type: found 'jpeg'"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: found 0"),
        ({"batch_size": 0}, "batch_size: found 0"),
    ],
)
def test_mistakes_are_named(pipe, arguments, words):
    with pytest.raises(UserError, match=words):
        draw(pipe, **arguments)


def test_an_unconditional_prior_takes_no_label_and_no_guidance(unconditional):
    assert len(draw(unconditional, label=None, num_images_per_prompt=2).images) == 2
    with pytest.raises(UserError, match=r"found 0, but this prior is unconditional"):
        draw(unconditional)
    with pytest.raises(UserError, match=r"guidance_scale=2\.0, and this prior is uncond"):
        draw(unconditional, label=None, guidance_scale=2.0)


def test_a_foreign_tokenizer_is_refused_and_both_sides_are_named(pipe, saved, make_tokenizer, tmp_path):
    shutil.copytree(saved, tmp_path / "g")
    shutil.rmtree(tmp_path / "g" / "tokenizer")
    make_tokenizer(tmp_path / "g" / "tokenizer", {"kind": "vq", "num_codes": 64, "dim": 8}, seed=1)
    with pytest.raises(UserError, match="do not belong together") as refused:
        ImageGenerationPipeline.from_pretrained(tmp_path / "g")
    assert str(tmp_path / "g" / "tokenizer") in str(refused.value) and str(tmp_path / "g" / "prior") in str(
        refused.value
    )
    foreign = replace(pipe.tokenizer, fingerprint="0" * 64)
    with pytest.raises(UserError, match=r"000000000000….* do not belong together"):
        ImageGenerationPipeline(foreign, pipe.prior)


@pytest.mark.parametrize("part", ["tokenizer", "prior", "generation_config.json", "model_index.json"])
def test_a_missing_part_is_named(saved, tmp_path, part):
    shutil.copytree(saved, tmp_path / "g")
    target = tmp_path / "g" / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(UserError, match=part):
        ImageGenerationPipeline.from_pretrained(tmp_path / "g")


def test_an_unknown_default_option_is_named(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "g")
    (tmp_path / "g" / "generation_config.json").write_text(json.dumps({"topp": 0.9}))
    with pytest.raises(UserError, match=r"generation_config.json: topp: unknown key"):
        ImageGenerationPipeline.from_pretrained(tmp_path / "g")


def test_saving_never_overwrites_unasked(pipe, saved, tmp_path):
    with pytest.raises(UserError, match="holds an image pipeline already"):
        pipe.save_pretrained(saved)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="was not written by `smalti run`"):
        pipe.save_pretrained(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    again = shutil.copytree(saved, tmp_path / "g")
    (again / "README.md").write_text("old")
    pipe.save_pretrained(again, overwrite=True)
    assert (again / "README.md").read_text() != "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "notes.txt"]


@pytest.mark.parametrize("name", ["thesis.tex", "prior/notes.txt"])
def test_overwriting_deletes_no_foreign_file(pipe, saved, tmp_path, name):
    folder = shutil.copytree(saved, tmp_path / "g")
    (folder / name).write_text("mine")
    pipe.save_pretrained(folder, overwrite=True)
    assert (folder / name).read_text() == "mine" and ImageGenerationPipeline.from_pretrained(folder)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_save_that_was_killed_leaves_nothing_that_loads_and_the_next_one_completes_it(
    pipe, saved, tmp_path, monkeypatch, overwrite
):
    folder = shutil.copytree(saved, tmp_path / "g") if overwrite else tmp_path / "g"
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.models.image_pipeline_folder.save_prior", lambda *_, **__: os._exit(9))
        if (child := os.fork()) == 0:
            pipe.save_pretrained(folder, overwrite=overwrite)
        os.waitpid(child, 0)
    with pytest.raises(UserError, match=r"has no model_index\.json"):
        ImageGenerationPipeline.from_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["g"]
    pipe.save_pretrained(folder)
    assert {path.name for path in folder.rglob("*")} == {path.name for path in saved.rglob("*")}
    assert ImageGenerationPipeline.from_pretrained(folder)


def test_passes_of_the_decoder_are_sized_for_the_device():
    assert [images_per_pass("cpu", size) for size in (28, 64, 256, 4096)] == [16, 16, 8, 1]
    assert images_per_pass("cuda", 256) == 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config["classes"].pop(), r"classes: found \d+, but the network knows"),
        (lambda config: config["classes"].reverse(), "classes and token_spec.classes differ"),
        (lambda config: config["token_spec"].update(levels=[[4, 16]]), "codes on the grid .*; expected the same"),
    ],
)
def test_a_prior_that_contradicts_its_spec_is_refused(saved, tmp_path, change, words):
    folder = shutil.copytree(saved, tmp_path / "g")
    config = json.loads((folder / "prior" / "config.json").read_text())
    change(config)
    (folder / "prior" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words):
        ImageGenerationPipeline.from_pretrained(folder)


@pytest.mark.parametrize("key", ["dim", "depth", "heads", "head_dim"])
@pytest.mark.parametrize("factor", [2, 1000, 10**12, 10**30])
def test_a_prior_of_other_sizes_than_its_weights_is_refused_before_it_is_built(saved, tmp_path, key, factor):
    folder = shutil.copytree(saved / "prior", tmp_path / "prior")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["transformer"][key] *= factor
    (folder / "config.json").write_text(json.dumps(config))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"config\.json"):
        load_prior(folder)
    assert time.monotonic() - began < 5


def test_a_grid_too_long_for_any_network_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved / "prior", tmp_path / "prior")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["vocabulary"]["segments"][1]["shape"] = [10**5, 10**5]
    config["token_spec"]["levels"] = [[10**5, 10**5]]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"level \(100000, 100000\): expected"):
        load_prior(folder)


def test_pushing_uploads_a_whole_image_pipeline(pipe, monkeypatch):
    seen = {}

    class FakeApi:
        def create_repo(self, repo_id, **options):
            seen["repo"] = repo_id, options["private"]

        def upload_folder(self, repo_id, folder_path, commit_message, ignore_patterns):
            names = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
            sent = set(filter_repo_objects(names, ignore_patterns=ignore_patterns))
            seen["kept back"] = set(names) - sent
            seen["tokens"] = draw(ImageGenerationPipeline.from_pretrained(folder_path)).tokens
            return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(hub, "HfApi", FakeApi)
    assert pipe.push_to_hub("me/tiles", private=True) == "https://hub/me/tiles/commit/1"
    assert seen["repo"] == ("me/tiles", True)
    assert seen["kept back"] == {".smalti.json"}
    assert torch.equal(seen["tokens"], draw(pipe).tokens)


def test_guidance_is_refused_where_the_null_condition_was_never_trained(tiny_tokens):
    untrained = build(tiny_tokens, condition_dropout=0.0)
    with pytest.raises(UserError, match=r"guidance_scale: found 2\.0, expected 1: .* condition_dropout=0"):
        draw(untrained, guidance_scale=2.0)
    draw(untrained, guidance_scale=1.0)


def test_the_weights_are_copied_once_for_all_batches_and_calls(tiny_tokens, monkeypatch):
    pipe, built = build(tiny_tokens), []
    monkeypatch.setattr(image_pipeline, "CachedDecoder", lambda prior: built.append(prior) or CachedDecoder(prior))
    first = draw(pipe, batch_size=1)
    assert torch.equal(draw(pipe, batch_size=2).tokens, first.tokens)
    assert len(built) == 1
    with torch.no_grad():
        pipe.prior.model.network.to_logits.weight.neg_()
    assert not torch.equal(draw(pipe, batch_size=3).tokens, first.tokens)
    assert len(built) == 2
