"""Inspection: it names what a folder is, measures the codebook, and finds tokens that are not the image's."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipelines.base.atomic_files import sha256_of
from pipelines.base.errors import UserError
from pipelines.base.image_grids import to_uint8
from pipelines.data.preprocess import Preprocess
from pipelines.inspect import inspect
from pipelines.models.checkpoint import load_tokenizer, save_tokenizer
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.encoded_window import encoded_window
from pipelines.tokens.health_figure import find_places, patches
from pipelines.tokens.shards import plan_shards, read_column, read_labels, read_tokens, token_table, write_shard
from pipelines.tokens.statistics import codebook_health, refuse_collapsed, unigram_bits, window_in_memory, window_of
from tests.pipelines.conftest import grey_data, write_vae
from tokenizer import CodeGrid


@pytest.fixture
def tokens(tiny_tokens, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(tiny_tokens, tmp_path / "copy")


def rewrite(folder, split, change):
    """Apply `change(tokens)` to every shard of a split, and make the manifest true again."""
    dataset = TokenDataset.open(folder)
    spec, manifest = dataset.spec, dataset.manifest.model_dump()
    shards = plan_shards(split, spec.source.rows[split], spec.shards[split])
    for shard, entry in zip(shards, manifest["splits"][split]["shards"], strict=True):
        path = folder / shard.file
        (values,) = read_tokens(path, spec)
        keys, texts = read_column(path, "key"), read_column(path, "text")
        write_shard(folder, spec, shard, token_table(spec, keys, change(values.copy()), read_labels(path, spec), texts))
        entry |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_token_dataset_is_described_and_measured(tokens, capsys):
    found = inspect(tokens)
    shown = capsys.readouterr().out
    assert found.kind == "token dataset"
    for part in ("token dataset", "200 rows", "64", found.health[0].verdict, "red circle"):
        assert part in shown
    assert found.figure == tokens / "health.png"
    with Image.open(found.figure) as picture:
        assert picture.size[0] > 500


def test_tokens_encoded_again_match(tokens):
    verified = inspect(tokens, verify_rows=30, split="test").verified
    assert verified.rows == 30
    assert verified.tokens == 30 * 64
    assert verified.match_rate > 0.999  # rows stand beside others than in their shards


def test_tokens_of_other_images_do_not_match(tokens):
    rewrite(tokens, "test", lambda values: (values + 1) % 64)
    verified = inspect(tokens, verify_rows=10, split="test").verified
    assert verified.match_rate < 0.1
    assert max(verified.gaps) > 0.1
    assert "distance gap" in str(verified)


def test_a_source_that_changed_is_named(tokens):
    spec = json.loads((tokens / "token_spec.json").read_text())
    spec["source"]["data"]["source"]["test"] = 41
    (tokens / "token_spec.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="encoded from 40 images, the source now has 41"):
        inspect(tokens, verify_rows=3, split="test")


def test_a_collapsed_codebook_is_refused_with_its_figures(tokens):
    refuse_collapsed(TokenDataset.open(tokens))
    rewrite(tokens, "train", lambda values: values % 2)
    with pytest.raises(UserError, match=r"collapsed on split 'train'.*of 64 codes"):
        refuse_collapsed(TokenDataset.open(tokens))


def test_health_counts_every_token(tiny_tokens):
    split = TokenDataset.open(tiny_tokens).split("train")
    (health,) = codebook_health(window_of(split))
    counts = np.bincount(split.tokens.reshape(-1), minlength=64)
    np.testing.assert_array_equal(health.counts[0].numpy(), counts)
    assert health.usage == pytest.approx((counts > 0).mean())
    assert np.log2(health.perplexity) == pytest.approx(unigram_bits(health.counts), rel=1e-4)


def test_unigram_bits_of_known_frequencies():
    assert unigram_bits(torch.tensor([[2, 0, 1, 0], [0, 0, 0, 1]])) == pytest.approx(1.5)


def test_a_patch_is_cut_where_its_code_stands(tiny_tokenizer):
    model = load_tokenizer(tiny_tokenizer).model
    tokens = np.zeros((3, 64), np.uint8)
    tokens[1, 8 * 2 + 5] = 7  # row 2, column 5
    window = window_in_memory("test", tokens, model.code_grids)
    (patch,) = patches(window, model, find_places(window, np.bincount(tokens.reshape(-1)), [7])[7])
    with torch.inference_mode():
        image = to_uint8(model.decode_codes(torch.from_numpy(tokens[1:2].astype(np.int64)).view(1, 8, 8, 1)))[0]
    torch.testing.assert_close(patch, image[:, 2 * 4 - 2 : 3 * 4 + 2, 5 * 4 - 2 : 6 * 4 + 2])


def test_places_of_a_code_are_spread_over_all_its_occurrences_whatever_the_chunks():
    tokens = np.random.default_rng(0).integers(0, 5, (40, 12)).astype(np.uint8)
    counts = np.bincount(tokens.reshape(-1), minlength=5)
    whole = window_in_memory("test", tokens, (CodeGrid(3, 4, 1, 5),))
    parts = replace(whole, read=lambda: np.array_split(tokens, 7))
    for code in range(5):
        expected = np.flatnonzero(tokens.reshape(-1) == code)
        expected = expected[np.linspace(0, len(expected) - 1, 6).round().astype(int)]
        for window in (whole, parts):
            found = find_places(window, counts, [code])[code]
            assert found.positions == (expected % 12).tolist()
            np.testing.assert_array_equal(found.rows, tokens[expected // 12])


def test_a_tokenizer_is_described(tiny_tokenizer, capsys):
    assert inspect(tiny_tokenizer).kind == "tokenizer"
    shown = capsys.readouterr().out
    for part in ("64 codes", "8 x 8 x 1", "384 bits an image", load_tokenizer(tiny_tokenizer).fingerprint[:12]):
        assert part in shown


def test_a_run_is_measured_on_its_validation_split(tiny_tokenizer, make_data, tmp_path, capsys):
    data = make_data(train=10, validation=70, test=1)
    recipe = {"kind": "tokenizer", "data": data.model_dump(mode="json"), "training": {"steps": 5}}
    shutil.copytree(tiny_tokenizer, tmp_path / "best")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "split": "validation", "nll": 12.5}\n')
    found = inspect(tmp_path)
    assert found.kind == "run of a tokenizer"
    assert found.health[0].tokens == 70 * 64
    assert "nll 12.5" in capsys.readouterr().out
    window = encoded_window(load_tokenizer(tiny_tokenizer), data)
    assert window.rows == 70
    assert [chunk.shape for chunk in window.read()] == [(70, 64)]


@pytest.fixture
def pipeline_folder(tiny_tokens, tmp_path):
    (tmp_path / "recipe.yaml").write_text("kind: pipeline\noutput: somewhere\n")
    shutil.copytree(tiny_tokens, tmp_path / "tokens")
    return tmp_path


def test_an_unfinished_pipeline_says_how_to_go_on_and_names_its_parts(pipeline_folder):
    found = inspect(pipeline_folder)
    assert found.kind == "pipeline"
    assert "unfinished: rerun `smalti run`" in dict(found.facts)["state"]
    assert "tokens/" in found.notes[0]


def test_a_finished_pipeline_shows_its_figures(pipeline_folder):
    report = {
        "codes": {"used": 60, "size": 64, "perplexity": 50.0, "verdict": "healthy"},
        "bits_per_token": {"prior": 4.0, "unigram": 5.5, "bigram": 5.0, "images": 40},
        "reconstruction": {"psnr": 31.4, "ssim": None, "images": 40},
        "labels": None,
        "seconds": {"tokenizer": 3.0},
    }
    (pipeline_folder / "report.json").write_text(json.dumps(report))
    facts = dict(inspect(pipeline_folder).facts)
    assert facts["state"] == "finished"
    assert "31.40 dB" in facts["reconstruction"]


def test_a_figure_that_was_not_asked_for_is_no_reason_to_fail(tokens):
    (tokens / "health.png").mkdir()
    found = inspect(tokens)
    assert found.figure is None
    assert found.health
    assert "health.png cannot be written" in found.notes[0]


def test_other_folders_are_refused_with_what_they_hold(tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        inspect(tmp_path / "absent")
    with pytest.raises(UserError, match="expected a tokenizer"):
        inspect(tmp_path)
    shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer")
    with pytest.raises(UserError, match="it holds tokenizer/: inspect one of these"):
        inspect(tmp_path)
    with pytest.raises(UserError, match="--verify needs"):
        inspect(tiny_tokenizer, verify_rows=3)


def test_a_figure_goes_where_it_was_asked_for(tiny_tokens, tmp_path):
    found = inspect(tiny_tokens, figure=tmp_path / "codes.png")
    assert found.figure == tmp_path / "codes.png"
    assert found.figure.is_file()


@pytest.mark.parametrize("name", ["codes.jpg", "codes", "folder.png"])
def test_a_figure_that_is_no_png_file_is_refused_before_any_work(tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=name):
        inspect(tmp_path / "no such folder", figure=tmp_path / name)


def test_verification_reads_only_the_files_of_its_rows(tokens):
    dataset = TokenDataset.open(tokens)
    _, second, _ = dataset.split("train").files
    stored = dataset.split("train").tokens
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 0xFF
    second.write_bytes(content)
    rows = np.arange(len(dataset.split("train")) // 4)
    np.testing.assert_array_equal(TokenDataset.open(tokens).split("train").part(rows).tokens, stored[rows])


def run_of(model_folder, data, folder):
    """The folder of a run whose best model this is."""
    shutil.copytree(model_folder, folder / "best")
    recipe = {"kind": "tokenizer", "data": data.model_dump(mode="json"), "training": {"steps": 5}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_the_latent_of_a_continuous_run_is_measured_on_its_validation_split(tiny_vae, tmp_path, capsys):
    run = run_of(tiny_vae, grey_data(train=10, validation=70, test=1), tmp_path / "run")
    found = inspect(run)
    shown = capsys.readouterr().out
    assert found.latent_health.images == 70 and len(found.latent_health.kl) == 5
    assert found.latent_health.verdict in shown and "70 images of validation" in shown
    assert found.figure == run / "health.png"
    with Image.open(found.figure) as figure:
        assert figure.size[0] > 500
    of_model = inspect(run / "best", figure=tmp_path / "latent.png")
    assert torch.equal(of_model.latent_health.kl, found.latent_health.kl) and of_model.figure == tmp_path / "latent.png"


def test_the_split_is_the_one_that_was_asked_for(tmp_path):
    run = run_of(write_vae(tmp_path / "model"), grey_data(train=10, validation=30, test=7), tmp_path / "run")
    for folder in (run, run / "best"):
        assert inspect(folder, split="test").latent_health.images == 7
        with pytest.raises(UserError, match="--split: found 'nonsense', expected one of"):
            inspect(folder, split="nonsense")


def test_a_latent_that_is_the_same_for_every_image_is_called_collapsed(tmp_path, capsys):
    folder = write_vae(tmp_path / "model")
    model = load_tokenizer(folder).model
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    save_tokenizer(folder, model, Preprocess(mode="L", size=16))
    found = inspect(run_of(folder, grey_data(train=10, validation=30, test=1), tmp_path / "run"))
    assert found.latent_health.verdict == "collapsed"
    assert "0 of 5 units active" in capsys.readouterr().out


def test_a_continuous_model_outside_of_its_run_says_what_is_missing(tiny_vae, make_tokenizer, make_data, tmp_path):
    assert "inspect its run" in inspect(tiny_vae).notes[0]
    plain = make_tokenizer(tmp_path / "model", {"kind": "deterministic", "dim": 4})
    found = inspect(run_of(plain, make_data(train=10, validation=5, test=1), tmp_path / "run"))
    assert found.latent_health.images == 5 and found.latent_health.kl is None
    gone = run_of(tiny_vae, grey_data(train=10, validation=5, test=1), tmp_path / "gone")
    recipe = (gone / "recipe.yaml").read_text()
    (gone / "recipe.yaml").write_text(recipe.replace("kind: shapes", "kind: gone"))
    assert "the health of the latent is not known" in inspect(gone / "best").notes[0]
