"""The tokenizer of captions: what the library does, and the dropout that it cannot seed."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise, product

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from prior import CaptionTokenizer
from prior.bpe_dropout import merge_with_dropout
from prior.captions import _kept, _merges

COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle")
TEXTS = [f"A {colour} {shape} on {ground} ground" for colour, shape, ground in product(COLOURS, SHAPES, COLOURS)]


@pytest.fixture(scope="module")
def captions() -> CaptionTokenizer:
    return CaptionTokenizer.train(TEXTS, 310)


def test_known_words_are_one_token_each_and_the_rest_is_pads(captions):
    words = captions.encode(["a red circle", "a circle"], 5)
    assert words.shape == (2, 5) and words.dtype == torch.int64
    assert (words >= 0).tolist() == [[True, True, True, False, False], [True, True, False, False, False]]
    assert (words[words < 0] == -1).all() and words[0, 2] == words[1, 1]


def test_a_row_without_a_caption_and_an_empty_one_are_all_pads(captions):
    assert (captions.encode([None, "", " \n"], 4) == -1).all()


def test_no_captions_are_no_rows(captions):
    assert captions.encode([], 4).shape == (0, 4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("text", ["zürich 🙂 \x00", "日本語", "a" * 300, "b@#\t$% 1234", "'tis isn't"])
def test_no_text_is_unknown(captions, text, dropout):
    words = captions.encode([text], 1000, dropout=dropout, seeds=[7])
    assert (words < captions.num_words).all()
    assert captions.decode(words) == [" ".join(text.split(" ")).replace("\t", " ").strip()]


def test_half_a_character_is_read_as_a_question_mark(captions):
    assert captions.decode(captions.encode(["red \udcff"], 9)) == ["red ?"]


def test_case_and_white_space_do_not_count(captions):
    words = captions.encode(["a red circle", "  A RED\n\tcircle "], 6)
    assert torch.equal(words[0], words[1])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_long_caption_is_cut_off_and_says_so(captions, dropout):
    texts, seeds = ["a red circle on blue ground", "a", None], range(3)
    whole, cut = (captions.encode(texts, length, dropout=dropout, seeds=seeds) for length in (40, 4))
    assert torch.equal(cut, whole[:, :4])
    assert captions.num_tokens(texts) == [6, 1, 0]


def test_training_is_the_same_each_time_and_asks_for_no_order_of_captions(captions):
    assert CaptionTokenizer.train(iter(TEXTS), 310).to_json() == captions.to_json()
    assert CaptionTokenizer.train(reversed(TEXTS), 310).to_json() == captions.to_json()


def test_few_captions_make_fewer_words_than_asked_for():
    few = CaptionTokenizer.train(["ab", "ab"], 1000)
    assert few.num_words == 258  # all bytes, "ab" and " ab"
    assert CaptionTokenizer.train(TEXTS, 270).num_words == 270
    assert CaptionTokenizer.train([], 256).num_words == 256


def test_a_word_that_two_merges_make_is_counted_once():
    captions = CaptionTokenizer([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")])
    assert captions.num_words == 256 + 3
    assert captions.encode([" abc"], 4).tolist() == captions.encode(["abc"], 4, dropout=1e-12, seeds=[0]).tolist()
    assert captions.encode(["abc"], 2)[0, 1] == 258  # after the space
    assert CaptionTokenizer.from_json(captions.to_json()).to_json() == captions.to_json()


def test_fewer_words_than_bytes_are_refused():
    with pytest.raises(ValueError, match="num_words: found 255, expected at least 256"):
        CaptionTokenizer.train(TEXTS, 255)


def test_it_survives_json_and_reads_the_same(captions):
    read = CaptionTokenizer.from_json(captions.to_json())
    assert read.to_json() == captions.to_json()
    options = {"dropout": 0.4, "seeds": range(len(TEXTS))}
    assert torch.equal(read.encode(TEXTS, 12), captions.encode(TEXTS, 12))
    assert torch.equal(read.encode(TEXTS, 30, **options), captions.encode(TEXTS, 30, **options))


def test_its_json_is_a_tokenizer_of_hugging_face(captions):
    library = Tokenizer.from_str(captions.to_json())
    words = captions.encode(TEXTS, 20)
    assert [row[row >= 0].tolist() for row in words] == [library.encode(text).ids for text in TEXTS]


def changed(captions, change) -> str:
    content = json.loads(captions.to_json())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"].update(dropout=0.1),
        lambda content: content["model"].update(merges=[]),
        lambda content: content["model"]["vocab"].update({"a": 7, "b": 8}),
        lambda content: content["model"]["vocab"].pop("a"),
        lambda content: content["model"].update(type="WordLevel"),
        lambda content: content.update(normalizer=None),
        lambda content: content.update(pre_tokenizer={"type": "Whitespace"}),
        lambda content: content.pop("model"),
    ],
)
def test_another_tokenizer_is_refused(captions, change):
    with pytest.raises(ValueError, match="expected"):
        CaptionTokenizer.from_json(changed(captions, change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", Tokenizer(models.WordLevel()).to_str()])
def test_what_is_no_tokenizer_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        CaptionTokenizer.from_json(text)


def test_a_dropout_near_zero_merges_as_the_library_does(captions):
    texts = [*TEXTS, "aaaa aaa", "squaresquare", "grounding", "🙂🙂"]
    assert torch.equal(captions.encode(texts, 50, dropout=1e-12, seeds=range(len(texts))), captions.encode(texts, 50))


def test_a_dropout_of_one_leaves_the_bytes(captions):
    words = captions.encode(["red zü"], 20, dropout=1.0, seeds=[3])
    assert (words < 256).all() and (words >= 0).sum() == len(" red zü".encode())


def test_words_of_a_row_follow_from_its_text_and_its_seed_alone(captions):
    seeds = [3 * i for i in range(len(TEXTS))]
    together = captions.encode(TEXTS, 40, dropout=0.3, seeds=seeds)
    state = torch.get_rng_state()
    for row in (0, 5, 17):
        alone = captions.encode(TEXTS[row : row + 1], 40, dropout=0.3, seeds=seeds[row : row + 1])
        assert torch.equal(alone[0], together[row])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(captions.encode(TEXTS, 40, dropout=0.3, seeds=range(len(TEXTS))), together)


def test_dropout_changes_words_and_never_the_text(captions):
    words = captions.encode(["a red circle"] * 50, 40, dropout=0.3, seeds=range(50))
    assert len(words.unique(dim=0)) > 10
    assert set(captions.decode(words)) == {"a red circle"}


def segmentations(piece: tuple[str, ...], ranks: dict[tuple[str, str], int], dropout: float) -> Counter:
    """The exact probability of each result: a merge is done when it is kept and all that come before it are dropped."""
    possible = sorted((ranks[pair], place) for place, pair in enumerate(pairwise(piece)) if pair in ranks)
    found = Counter({piece: dropout ** len(possible)})
    for before, (_, place) in enumerate(possible):
        merged = (*piece[:place], piece[place] + piece[place + 1], *piece[place + 2 :])
        for result, probability in segmentations(merged, ranks, dropout).items():
            found[result] += dropout**before * (1 - dropout) * probability
    return found


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_segmentations_are_as_frequent_as_the_algorithm_says(dropout):
    captions = CaptionTokenizer.train(["banana bandana ana an"] * 2, 263)
    ranks = {pair: rank for rank, pair in enumerate(_merges(captions._tokenizer))}
    expected = segmentations(tuple("Ġbanana"), ranks, dropout)
    assert sum(expected.values()) == pytest.approx(1) and len(expected) > 8
    rows = captions.encode(["banana"] * 5_000, 8, dropout=dropout, seeds=range(5_000))
    names = {number: word for word, number in captions._ids.items()}
    observed = Counter(tuple(names[word] for word in row if word >= 0) for row in rows.tolist())
    assert observed.keys() <= expected.keys()
    common = [words for words in expected if expected[words] * 5_000 >= 5]
    statistic = sum((observed[words] / 5_000 - expected[words]) ** 2 / expected[words] for words in common) * 5_000
    degrees = len(common)
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5


def merged_by_search(characters: str, ranks: dict[tuple[str, str], int], kept: Iterator[bool]) -> list[str]:
    """As `merge_with_dropout`, by the words of the paper: it looks at all possible merges before each that it does."""
    words = list(characters)
    while True:
        possible = sorted((ranks[pair], place) for place, pair in enumerate(pairwise(words)) if pair in ranks)
        place = next((place for _, place in possible if next(kept)), None)
        if place is None:
            return words
        words[place : place + 2] = [words[place] + words[place + 1]]


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.9])
def test_the_heap_merges_as_a_search_does(dropout):
    numbers = random.Random(3)
    texts = ["".join(numbers.choices("aab", k=numbers.randint(1, 40))) for _ in range(200)]
    captions = CaptionTokenizer.train(texts, 300)
    for seed, text in enumerate(texts):
        found, expected = (
            merge(text, captions._ranks, _kept(random.Random(seed), dropout))
            for merge in (merge_with_dropout, merged_by_search)
        )
        assert found == expected and "".join(found) == text


def test_a_long_text_without_spaces_takes_no_quadratic_time():
    captions = CaptionTokenizer.train(["in in"] * 2, 260)
    start = time.process_time()
    captions.encode(["in" * 10_000], 8, dropout=0.1, seeds=[0])
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.1}, "seeds: found none, expected one for each of 2 captions"),
        ({"dropout": 0.1, "seeds": [1]}, "seeds: found 1, expected one for each of 2 captions"),
        ({"dropout": 1.5, "seeds": [1, 2]}, r"dropout must lie in \[0, 1\], got 1.5"),
    ],
)
def test_options_that_do_not_fit_are_refused(captions, options, message):
    with pytest.raises(ValueError, match=message):
        captions.encode(["a", None], 4, **options)


def test_the_alphabet_is_all_bytes():
    assert len(pre_tokenizers.ByteLevel.alphabet()) == 256


def test_the_library_is_imported_with_the_first_caption():
    program = "import sys, prior; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.slow
def test_a_process_that_trained_forks_without_a_warning():
    program = """
import os
from prior import CaptionTokenizer
captions = CaptionTokenizer.train([f"caption {i} of many words" for i in range(20_000)], 300)
captions.encode(["a"], 3)
if not os.fork():
    captions.num_tokens(["a"] * 100)
    captions.encode(["a"] * 100, 3, dropout=0.1, seeds=range(100))
    os._exit(0)
os.wait()
"""
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]  # of threads, in Python 3.12
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert done.stderr == b""
