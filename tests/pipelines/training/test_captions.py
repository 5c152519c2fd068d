"""A prior that is trained on captions: its tokenizer, the words of each batch, held-out figures, mistakes named."""

import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
import yaml
from accelerate import Accelerator

from pipelines.base.errors import DataWarning, UserError
from pipelines.data import DataConfig
from pipelines.encode import encode
from pipelines.evaluate.token_bits import token_bits
from pipelines.models.checkpoint import load_prior
from pipelines.recipes.stages import PriorRecipe, load_recipe
from pipelines.tokens.captions import condition_of, distinct_captions
from pipelines.tokens.dataset import TokenDataset
from pipelines.train import build_task, train_recipe
from pipelines.training.captions import train_captions, training_words
from pipelines.training.collective import Collective
from pipelines.training.conditioning import CaptionOptions, Conditioning
from pipelines.training.config import TrainingConfig
from pipelines.training.prior_task import PriorTask
from prior import PriorPhase, TransformerConfig, sequence_bits
from tests.pipelines.test_partly_labelled import write_images

ROOT = Path(__file__).parents[3]
TINY = TransformerConfig(dim=16, depth=1, heads=1, head_dim=16)
TRAINING = TrainingConfig(steps=3, batch_size=12, validation_images=20)
OPTIONS = CaptionOptions(vocab_size=320, max_length=48, bpe_dropout=0.3)
TEXTS = ["a cat", "A dog", None, "a black cat", "", "two dogs"]


def prior_task(tokens: Path, dropout: float = 0.1, **options) -> PriorTask:
    captions = OPTIONS.model_copy(update=options)
    return PriorTask(tokens, Conditioning("caption", dropout, captions), TINY, TRAINING, seed=0)


@pytest.fixture(scope="module")
def task(tiny_tokens) -> PriorTask:
    return prior_task(tiny_tokens)


def model_of(task: PriorTask):
    return cast(PriorPhase, task.phases["prior"].phase).model


def captioned_tokens(tokenizer: Path, folder: Path, **texts: list[str | None]) -> Path:
    """Tokens of images with these captions."""
    import pyarrow as pa
    from pyarrow.parquet import read_table, write_table

    files = {}
    for split, found in texts.items():
        files[split] = write_images(folder / f"{split}.parquet", [0] * len(found))
        table = read_table(files[split]).append_column("caption", pa.array(found, pa.string()))
        write_table(table, files[split])
    source = {"kind": "huggingface", "path": "parquet", "data_files": files, "text": "caption"}
    data = DataConfig.model_validate({"source": source, "preprocess": {"mode": "RGB", "size": 32}})
    encode(tokenizer, data, folder / "tokens", list(texts))
    return folder / "tokens"


# The words of a batch


def test_words_without_dropout_are_those_of_the_captions(tiny_tokens):
    task = prior_task(tiny_tokens, bpe_dropout=0.0)
    (first, *_) = task.batches(0, 0, 1)
    captions = task.captions.decode(first["caption"])
    known = {text.lower() for text in task.tokens.texts}
    assert set(captions) <= known and len(set(captions)) > 3
    assert first["caption"].shape == (12, 48) and first["caption"].min() == -1


def test_dropout_changes_the_words_and_not_the_caption(task):
    plain = prior_task(task.dataset.folder, bpe_dropout=0.0)
    for one, other in zip(task.batches(0, 0, 1), plain.batches(0, 0, 1), strict=True):
        assert torch.equal(one["codes"], other["codes"])
        assert not torch.equal(one["caption"], other["caption"])
    rows, step = [5, 6, 7], 4
    options = OPTIONS.model_copy(update={"max_length": 200})
    words = training_words(task.captions, options, task.tokens, rows, 0, step)
    assert task.captions.decode(words) == [task.tokens.texts[row].lower() for row in rows]


def test_words_depend_on_seed_step_and_row_alone(task):
    def words(rows, seed=0, step=0):
        return training_words(task.captions, OPTIONS, task.tokens, rows, seed, step)

    whole = words([3, 1, 2])
    assert torch.equal(words([1]), whole[1:2])
    assert not torch.equal(words([3, 1, 2], step=1), whole) and not torch.equal(words([3, 1, 2], seed=1), whole)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batch_of_one(task, world):
    shares = zip(*(task.batches(1, rank, world) for rank in range(world)), strict=True)
    for parts, whole in zip(shares, task.batches(1, 0, 1), strict=True):
        for name in whole:
            assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])


def test_a_continued_run_gets_the_batches_of_an_uninterrupted_one(task, tiny_tokens):
    *_, expected = task.batches(0, 0, 1)
    (found,) = prior_task(tiny_tokens).batches(2, 0, 1)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_process_trains_the_same_tokenizer(task, tiny_tokens):
    code = (
        "import sys; from pipelines.tokens.dataset import TokenDataset\n"
        "from pipelines.training.captions import CaptionOptions, train_captions\n"
        "print(train_captions(TokenDataset.open(sys.argv[1]), CaptionOptions(vocab_size=320)).to_json())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tiny_tokens)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == task.captions.to_json().strip(), found.stderr


# Rows without a caption


def test_a_row_without_a_caption_has_the_null_caption(tiny_tokenizer, tmp_path):
    tokens = captioned_tokens(tiny_tokenizer, tmp_path, train=TEXTS * 4, validation=TEXTS * 4, test=TEXTS)
    task = prior_task(tokens, dropout=0)
    for batch in task.batches(0, 0, 1):
        assert batch["caption"].eq(-1).all(1).sum() == 4  # two of each six rows
    held_out = TokenDataset.open(tokens).split("test")
    assert distinct_captions(held_out, 10) == ["a cat", "A dog", "a black cat", "two dogs"]
    assert distinct_captions(held_out, 2) == ["a cat", "A dog"]


def test_a_null_caption_that_is_never_trained_is_refused(tiny_tokenizer, tmp_path):
    tokens = captioned_tokens(tiny_tokenizer, tmp_path, train=["a cat"] * 12, validation=["a cat", " "] * 3)
    with pytest.raises(UserError, match=r"condition_dropout: found 0, but .* rows without a caption in .*validation"):
        prior_task(tokens, dropout=0)
    assert prior_task(tokens).captions


def test_tokens_without_a_single_caption_are_refused(tiny_tokenizer, tmp_path):
    tokens = captioned_tokens(tiny_tokenizer, tmp_path, train=[None, "", " \n"] * 4, validation=TEXTS)
    with pytest.raises(UserError, match=r"condition: found 'caption', but .* has no captions .*; expected 'none'"):
        prior_task(tokens)


def test_captions_that_are_cut_off_are_counted(tiny_tokens):
    dataset = TokenDataset.open(tiny_tokens)
    with pytest.warns(DataWarning, match=r"caption\.max_length: 200 of 200 training captions have more than 2 tokens"):
        train_captions(dataset, CaptionOptions(max_length=2))


# Figures and folders


def test_held_out_bits_are_given_with_and_without_the_caption(task, tiny_tokens, tmp_path):
    model, held_out = model_of(task), TokenDataset.open(tiny_tokens).split("validation")
    figures = task.validate({"prior": model}, Collective(Accelerator(cpu=True)))
    batch = held_out.batch(range(20))
    words = condition_of(held_out, range(20), batch, model.vocabulary, task.captions)
    assert figures["bits_per_token"] == pytest.approx(sequence_bits(model, batch["codes"], words).mean().item() / 64)
    without = sequence_bits(model, batch["codes"]).mean().item() / 64
    assert figures["bits_per_token_without_caption"] == pytest.approx(without)
    assert figures["bits_per_token"] != pytest.approx(without, rel=1e-6)
    task.publish({"prior": model}, tmp_path)
    found = token_bits(tmp_path, tiny_tokens, "validation", batch_size=7)
    assert (found.prior, found.without_caption) == pytest.approx((figures["bits_per_token"], without))
    assert (found.unigram, found.bigram) == pytest.approx((figures["unigram_bits"], figures["bigram_bits"]))


def test_a_null_caption_that_was_never_trained_has_no_figure(tiny_tokens, tmp_path):
    task = prior_task(tiny_tokens, dropout=0)
    model = model_of(task)
    assert "bits_per_token_without_caption" not in task.validate({"prior": model}, Collective(Accelerator(cpu=True)))
    task.publish({"prior": model}, tmp_path)
    assert token_bits(tmp_path, tiny_tokens, "validation").without_caption is None


def test_the_published_prior_reads_captions_as_it_was_trained(task, tmp_path):
    task.publish({"prior": model_of(task)}, tmp_path)
    loaded = load_prior(tmp_path)
    texts = ["a small red circle", None]
    assert torch.equal(loaded.captions.encode(texts, 48), task.captions.encode(texts, 48))
    assert loaded.model.config.text_weight == OPTIONS.text_weight and loaded.classes is None


# Recipes


def recipe_file(folder: Path, tokens: Path, output: str = "out", **keys) -> Path:
    content = {
        "kind": "prior",
        "output": str(folder / output),
        "tokens": str(tokens),
        "condition": "caption",
        "caption": {"vocab_size": 300, "max_length": 48},
        "transformer": {"dim": 16, "depth": 1, "heads": 1, "head_dim": 16},
        "training": {"steps": 4, "batch_size": 8, "validate_every": 2, "save_every": 2, "validation_images": 8},
    }
    (folder / f"{output}.yaml").write_text(yaml.safe_dump(content | keys))
    return folder / f"{output}.yaml"


def load_prior_recipe(path: Path) -> PriorRecipe:
    return cast(PriorRecipe, load_recipe(path))


def test_options_of_captions_have_defaults(tmp_path, tiny_tokens):
    recipe = load_prior_recipe(recipe_file(tmp_path, tiny_tokens, caption=None))
    assert recipe.caption == CaptionOptions() == recipe.conditioning.caption
    without = load_prior_recipe(recipe_file(tmp_path, tiny_tokens, condition="label", caption=None))
    assert without.caption is None and without.conditioning.condition == "label"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"condition": "label"}, "caption: found options of captions under condition 'label', expected none"),
        ({"condition": "text"}, "condition: found 'text'"),
        ({"caption": {"vocab_size": 10}}, "caption.vocab_size: found 10"),
        ({"caption": {"max_length": 10**9}}, "caption.max_length: found 1000000000"),
        ({"caption": {"bpe_dropout": 1}}, "caption.bpe_dropout: found 1"),
        ({"caption": {"words": 1}}, "caption.words: unknown key"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path, tiny_tokens, keys, words):
    with pytest.raises(UserError, match=words):
        load_recipe(recipe_file(tmp_path, tiny_tokens, **keys))


def test_a_continued_run_keeps_its_tokenizer_of_captions(tmp_path, tiny_tokens, monkeypatch):
    recipe = load_recipe(recipe_file(tmp_path, tiny_tokens))
    run = train_recipe(recipe)
    assert (run.path / "best" / "captions.json").is_file()
    known = cast(PriorTask, build_task(recipe))
    monkeypatch.setattr("pipelines.training.prior_task.train_captions", lambda *_: pytest.fail("trained again"))
    assert cast(PriorTask, build_task(recipe)).captions.to_json() == known.captions.to_json()
    with pytest.raises(pytest.fail.Exception):
        build_task(recipe, overwrite=True)
    other = load_recipe(recipe_file(tmp_path, tiny_tokens, output="elsewhere"))
    with pytest.raises(pytest.fail.Exception):
        build_task(other)
