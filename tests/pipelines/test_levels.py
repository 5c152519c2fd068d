"""Codes of two levels through every stage: tokenizer, token dataset, prior, image pipeline, report."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from pipelines.base.errors import UserError
from pipelines.data import open_images
from pipelines.decode import decode
from pipelines.encode import encode
from pipelines.evaluate.report import rows
from pipelines.inspect import inspect
from pipelines.models.checkpoint import load_prior, load_tokenizer
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.models.token_spec import TokenSpec
from pipelines.recipes.pipeline import load_pipeline
from pipelines.recipes.stages import load_recipe
from pipelines.run import run
from pipelines.tokens.baselines import LevelBaselines
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.health_figure import find_places, patches
from pipelines.tokens.statistics import codebook_health, refuse_collapsed, window_of
from pipelines.training.loop import TrainingLoop
from prior import CountBaselines
from tests.pipelines.conftest import BACKBONE, read_example
from tokenizer import CodeGrid, split_codes

COARSE, FINE = {"kind": "vq", "num_codes": 20, "dim": 4}, {"kind": "vq", "num_codes": 300, "dim": 4}
INNER = {"kind": "conv", "widths": [8], "residual_blocks": 1, "residual_width": 8}
BOTTLENECK = {"kind": "multilevel", "levels": [COARSE, FINE], "width": 8, "backbone": INNER}
GRIDS = (CodeGrid(4, 4, 1, 20), CodeGrid(8, 8, 1, 300))
TRAINING = {"steps": 6, "batch_size": 16, "validate_every": 3, "save_every": 3, "validation_images": 8}


@pytest.fixture(scope="module")
def two_levels(make_tokenizer, make_data, tmp_path_factory):
    """A tokenizer of two levels, and its tokens of 200 training, 20 validation and 40 test images."""
    root = tmp_path_factory.mktemp("levels")
    make_tokenizer(root / "tokenizer", BOTTLENECK)
    encode(root / "tokenizer", make_data(train=200, validation=20, test=40), root / "tokens", num_shards=3)
    return root


@pytest.fixture(scope="module")
def tokens(two_levels):
    return TokenDataset.open(two_levels / "tokens")


def test_the_spec_has_a_number_of_codes_and_a_grid_for_each_level(tokens):
    stored = json.loads((tokens.folder / "token_spec.json").read_text())
    assert stored["levels"] == [[4, 4], [8, 8]] and stored["num_codes"] == [20, 300]
    assert stored["dtype"] == "uint16" and stored["num_quantizers"] == [1, 1]
    assert tokens.spec.code_grids == GRIDS and tokens.spec.tokens_per_image == 80
    assert TokenSpec.model_validate(stored).sha256 == tokens.spec.sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"num_codes": 300},
        {"num_codes": [20]},
        {"num_quantizers": 1},
        {"levels": [[8, 8]]},
        {"dtype": "uint8"},
        {"num_codes": [0, 300]},
    ],
    ids=str,
)
def test_a_spec_whose_levels_do_not_agree_is_refused(tokens, changes):
    stored = json.loads((tokens.folder / "token_spec.json").read_text())
    with pytest.raises(ValidationError):
        TokenSpec.model_validate(stored | changes)


def test_the_spec_of_one_level_has_plain_numbers(tiny_tokens):
    stored = json.loads((tiny_tokens / "token_spec.json").read_text())
    assert (stored["num_codes"], stored["num_quantizers"], stored["levels"]) == (64, 1, [[8, 8]])
    with pytest.raises(ValidationError, match="expected one number"):
        TokenSpec.model_validate(stored | {"num_codes": [64]})


def test_rows_hold_the_coarse_codes_then_the_fine_ones(two_levels, tokens, make_data):
    model, images = load_tokenizer(two_levels / "tokenizer").model, open_images(make_data(test=40), "test")
    pixels = torch.stack([read_example(images, row).image for row in range(40)])
    with torch.inference_mode():
        coarse, fine = split_codes(model.encode(pixels).codes, GRIDS)
    stored = tokens.split("test").tokens.astype(np.int64)
    assert (stored[:, :16] == coarse.flatten(1).numpy()).mean() > 0.99  # another kernel shape may flip a near-tie
    assert (stored[:, 16:] == fine.flatten(1).numpy()).mean() > 0.99
    assert fine.max() >= 20  # not a code of the coarse level


def test_tokens_decode_to_the_reconstruction(two_levels, tokens, make_data, tmp_path):
    model, images = load_tokenizer(two_levels / "tokenizer").model, open_images(make_data(test=40), "test")
    pixels = torch.stack([read_example(images, row).image for row in range(8)])
    decoded = model.decode_codes(tokens.split("test").batch(range(8))["codes"])
    torch.testing.assert_close(decoded, model.reconstruct(pixels), atol=0.02, rtol=0)
    assert len(decode(None, two_levels / "tokens", tmp_path / "pictures", max_images=4).pictures) == 4


def test_a_stored_code_beyond_its_level_is_named(make_tokenizer, make_data, tmp_path):
    make_tokenizer(tmp_path / "tokenizer", BOTTLENECK)
    encode(tmp_path / "tokenizer", make_data(train=20), tmp_path / "tokens", splits=("train",), num_shards=1)
    dataset = TokenDataset.open(tmp_path / "tokens")
    (file,) = dataset.split("train").files
    table = pq.read_table(file)
    values = np.stack(table.column("tokens").to_numpy()).copy()
    values[3, 15] = 20  # the last coarse position; the fine level has such a code
    column = table.schema.get_field_index("tokens")
    kind = table.schema.field(column).type
    changed = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind.value_type), values.shape[1])
    pq.write_table(table.set_column(column, table.schema.field(column), changed.cast(kind)), file)
    with pytest.raises(UserError, match=r"holds code 20, expected 0 … 19"):
        list(dataset.split("train").chunks())


def test_the_baselines_are_those_of_each_level_weighed_by_its_codes(tokens):
    train, test = (tokens.split(name).batch(range(len(tokens.split(name))))["codes"] for name in ("train", "test"))
    found, expected = tokens.baselines().bits_per_token(test), []
    for i, grid in enumerate(GRIDS):
        fitted = CountBaselines(grid.num_codes).fit(split_codes(train, GRIDS)[i])
        expected.append(fitted.bits_per_token(split_codes(test, GRIDS)[i]))
    for name in ("unigram", "bigram"):
        one, other = (getattr(bits, name) for bits in expected)
        assert getattr(found, name) == pytest.approx((16 * one + 64 * other) / 80)


def test_baselines_of_other_levels_are_refused(tokens):
    tensors = tokens.baselines().to_tensors()
    assert LevelBaselines.from_tensors(tensors, GRIDS).to_tensors().keys() == tensors.keys()
    for grids in (GRIDS[:1], GRIDS[::-1], (*GRIDS, GRIDS[0])):
        with pytest.raises(ValueError):
            LevelBaselines.from_tensors(tensors, grids)


def test_the_health_of_each_level_counts_its_own_codes(tokens):
    split = tokens.split("train")
    for level, (health, places) in enumerate(
        zip(codebook_health(window_of(split)), (slice(0, 16), slice(16, 80)), strict=True)
    ):
        counts = np.bincount(split.tokens[:, places].reshape(-1), minlength=GRIDS[level].num_codes)
        np.testing.assert_array_equal(health.counts[0].numpy(), counts)


def test_a_collapsed_level_is_refused_by_its_number(tokens, monkeypatch):
    split = tokens.split("train")
    stored = split.tokens.copy()
    stored[:, 16:] = 7
    monkeypatch.setattr(split, "chunks", lambda: [stored])
    with pytest.raises(UserError, match="at level 2 of 2"):
        refuse_collapsed(tokens)


def test_a_patch_of_a_coarse_code_covers_its_whole_cell(two_levels, tokens):
    model, window = load_tokenizer(two_levels / "tokenizer").model, window_of(tokens.split("test"))
    for level, side in ((0, 8), (1, 4)):
        counts = codebook_health(window)[level].counts[0].numpy()
        code = int(counts.argmax())
        places = find_places(window, counts, [code], level=level)[code]
        assert all(row[window.columns(level)][p] == code for row, p in zip(places.rows, places.positions, strict=True))
        assert patches(window, model, places, level).shape[-1] == 2 * side


def test_inspect_shows_every_level_and_verifies(two_levels, tmp_path, capsys):
    found = inspect(two_levels / "tokens", verify_rows=40, split="test", figure=tmp_path / "health.png")
    assert found.verified is not None and found.verified.match_rate > 0.99 and len(found.health) == 2
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("20, grid 4 x 4 x 1; 300, grid 8 x 8 x 1", "80 tokens an image", "codebook 1 of 2", "codebook 2 of 2"):
        assert part in shown
    with Image.open(tmp_path / "health.png") as picture:
        assert picture.height > picture.width


def recipes(bottleneck):
    model = {"backbone": BACKBONE, "bottleneck": bottleneck, "likelihood": {"kind": "normal"}}
    source = {"kind": "shapes", "train": 64, "validation": 16, "test": 24}
    return {
        "tokenizer.yaml": {
            "kind": "tokenizer",
            "output": "elsewhere",
            "data": {"source": source, "preprocess": {"size": 32, "mode": "RGB"}},
            "model": model,
            "objective": {"weights": {"nll": 1, "commitment": 0.25}},
            "training": TRAINING,
        },
        "prior.yaml": {
            "kind": "prior",
            "output": "elsewhere",
            "tokens": "elsewhere",
            "condition": "label",
            "transformer": {"dim": 16, "depth": 1, "heads": 1, "head_dim": 16},
            "training": TRAINING,
        },
    }


def write_recipes(folder, output):
    pipeline = {
        "kind": "pipeline",
        "output": str(output),
        "tokenizer": "tokenizer.yaml",
        "prior": "prior.yaml",
        "sample": {"num_images": 6, "options": {"top_p": 0.9, "guidance_scale": 1.5}},
        "evaluate": {"max_images": 10, "num_pairs": 4},
    }
    folder.mkdir(exist_ok=True)
    for name, content in {**recipes(json.loads(json.dumps(BOTTLENECK))), "pipeline.yaml": pipeline}.items():
        (folder / name).write_text(yaml.safe_dump(json.loads(json.dumps(content))))
    return folder / "pipeline.yaml"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            "levels.1={kind: vq, num_cods: 3}",
            "model.bottleneck.levels.1.num_cods: unknown key; did you mean 'num_codes'",
        ),
        ("levels.0={kind: vq, num_codes: many}", "model.bottleneck.levels.0.num_codes: found 'many', expected"),
        ("levels=[{kind: vq}]", "model.bottleneck.levels: "),
    ],
)
def test_a_mistake_in_a_level_is_named(tmp_path, wrong, said):
    place, _, content = wrong.partition("=")
    recipe = json.loads(json.dumps(recipes(BOTTLENECK)["tokenizer.yaml"]))
    name, *index = place.split(".")
    if index:
        recipe["model"]["bottleneck"][name][int(index[0])] = yaml.safe_load(content)
    else:
        recipe["model"]["bottleneck"][name] = yaml.safe_load(content)
    (tmp_path / "tokenizer.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=re.escape(said)):
        load_recipe(tmp_path / "tokenizer.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    return run(load_pipeline(write_recipes(folder, folder / "out"))), folder / "out"


def test_a_pipeline_reports_every_level(finished):
    report, root = finished
    assert report == json.loads((root / "report.json").read_text())
    assert report["codes"]["size"] == 320
    assert [level["size"] for level in report["codes"]["levels"]] == [20, 300]
    assert {"… level 1 of 2", "… level 2 of 2"} <= {name for name, _ in rows(report)}
    for name in ("overview.png", "reconstructions.png", "samples.png", "codes.png"):
        with Image.open(root / name) as picture:
            assert picture.width > 32


def test_its_image_pipeline_draws_codes_of_both_levels(finished):
    pipeline = ImageGenerationPipeline.from_pretrained(finished[1])
    drawn = pipeline(label=["red circle", "blue cross"], num_images_per_prompt=2, generator=0, output_type="pt")
    assert drawn.tokens.shape == (4, 80) and torch.as_tensor(drawn.images).shape == (4, 3, 32, 32)
    coarse, fine = split_codes(drawn.tokens, GRIDS)
    assert coarse.max() < 20 and fine.max() < 300
    (alone,) = pipeline(label="blue cross", generator=[drawn.seeds[3]], output_type="pt").tokens
    assert torch.equal(alone, drawn.tokens[3])


def test_a_prior_of_other_levels_is_refused(finished, tmp_path):
    config = json.loads((finished[1] / "prior" / "best" / "config.json").read_text())
    names = [segment["name"] for segment in config["model"]["vocabulary"]["segments"]]
    assert names == ["label", "codes 1", "codes 2"]
    config["model"]["vocabulary"]["segments"][1:] = config["model"]["vocabulary"]["segments"][:0:-1]
    folder = tmp_path / "prior"
    folder.mkdir()
    for file in (finished[1] / "prior" / "best").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="token_spec has 20 codes"):
        load_prior(folder)


class Cut(Exception):
    pass


@pytest.mark.slow
def test_a_pipeline_that_is_stopped_in_each_stage_ends_with_the_same_weights(finished, tmp_path, monkeypatch):
    recipe, update, stops = write_recipes(tmp_path / "recipes", tmp_path / "out"), TrainingLoop.update, [4, 4]

    def cut(self, batch):
        if stops and self.step == stops[0]:
            stops.pop()
            raise Cut
        update(self, batch)

    monkeypatch.setattr(TrainingLoop, "update", cut)
    for _ in range(2):  # in the tokenizer, then in the prior
        with pytest.raises(Cut):
            run(load_pipeline(recipe))
    run(load_pipeline(recipe))
    for weights in ("tokenizer/last/model.safetensors", "prior/last/model.safetensors"):
        one, other = (load_file(root / weights) for root in (finished[1], tmp_path / "out"))
        assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()
