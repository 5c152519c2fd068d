"""The masks of layers: by a literal definition, as pictures, by gradients, and the same ones wherever they are used."""

from itertools import accumulate

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from prior import (
    CachedDecoder,
    PriorConfig,
    Segment,
    TransformerConfig,
    Vocabulary,
)
from prior.attention import (
    Attention,
    ColumnAttention,
    ConvolutionalAttention,
    Dalle1Attention,
    FullAttention,
    LayerAttention,
    PatternAttention,
    RowAttention,
    attention_mask,
    attention_masks,
    layer_attention,
)
from tests.prior.variants import ATTENTIONS, LAYER_ATTENTIONS, POSITIONS

LABELS = torch.tensor([0, 2, 1])
CODES = {
    "one quantizer": [(11, (3, 4, 1))],
    "two quantizers": [(11, (3, 3, 2))],
    "one cell": [(11, (1, 1, 1))],
    "one column": [(11, (5, 1, 1))],
    "one row": [(11, (1, 5, 2))],
    "large": [(11, (7, 6, 1))],
    "levels": [(5, (2, 2, 1)), (11, (3, 3, 2))],
}
every_attention = pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
every_layer = pytest.mark.parametrize("layer", LAYER_ATTENTIONS.values(), ids=LAYER_ATTENTIONS)
gathering = pytest.mark.parametrize("few", [0, 1], ids=["masked", "gathered"])


def vocabulary_of(levels, condition) -> Vocabulary:
    return Vocabulary.of_caption_and_levels(levels, num_words=8, caption_length=condition)


def sees(layer: LayerAttention, query: int, key: int, grid) -> bool:
    """Whether a code attends to another one of its level, spelled out for rows and columns."""
    _, width, quantizers = grid
    (row, column), (other_row, other_column) = divmod(query // quantizers, width), divmod(key // quantizers, width)
    match layer:
        case FullAttention():
            return True
        case RowAttention():
            return other_row == row or (other_row == row - 1 and other_column >= column)
        case ColumnAttention():
            return other_column == column
        case ConvolutionalAttention(window=window):
            reach = range(-(window // 2), window // 2 + 1)
            window_cells = [(row + up) * width + column + left for up in reach for left in reach]
            return key // quantizers in window_cells


def literal_mask(layer, vocabulary, levels):
    condition = vocabulary.condition.length
    starts = [condition + start for start in accumulate((level.length for level in vocabulary.codes), initial=0)]
    level_of = [-1] * condition + [i for i, level in enumerate(vocabulary.codes) for _ in range(level.length)]
    mask = torch.zeros(len(level_of), len(level_of), dtype=torch.bool)
    for query, level in enumerate(level_of):
        for key in range(query + 1):
            own_level = level >= 0 and level_of[key] == level
            start = starts[level] if own_level else 0
            mask[query, key] = not own_level or sees(layer, query - start, key - start, levels[level][1])
    return mask[:-1, :-1]


@pytest.mark.parametrize("condition", [1, 5])
@pytest.mark.parametrize("levels", CODES.values(), ids=CODES)
@every_layer
def test_a_mask_is_its_literal_definition(layer, levels, condition):
    vocabulary = vocabulary_of(levels, condition)
    assert torch.equal(attention_mask(layer, vocabulary), literal_mask(layer, vocabulary, levels))


PICTURES = [
    (
        RowAttention(),
        """
        . . . . .
        . . # # #
        # # O . .
        . . . . .
        """,
    ),
    (
        ColumnAttention(),
        """
        . . # . .
        . . # . .
        . . O . .
        . . . . .
        """,
    ),
    (
        ConvolutionalAttention(window=3),
        """
        . . . . .
        . # # # .
        . # O . .
        . . . . .
        """,
    ),
    (
        FullAttention(),
        """
        # # # # #
        # # # # #
        # # O . .
        . . . . .
        """,
    ),
]


@pytest.mark.parametrize(("layer", "picture"), PICTURES, ids=[layer.kind for layer, _ in PICTURES])
def test_what_a_cell_sees_as_a_picture(layer, picture):
    own = 2 * 5 + 2
    row = attention_mask(layer, vocabulary_of([(2, (5, 5, 1))], 3))[3 + own]
    drawn = ["O" if cell == own else ".#"[seen] for cell, seen in enumerate(row[3 : 3 + 4 * 5].tolist())]
    assert drawn == picture.split()
    assert row[:3].all()  # the condition


STREAMS = [
    (
        RowAttention(),
        """
        # . . | . . . . .
        # # . | . . . . .
        # # # | . . . . .
        - - - + - - - - -
        # # # | # . . . .
        # # # | # # . . .
        # # # | # # # . .
        # # # | . # # # .
        # # # | . . # # #
        """,
    ),
    (
        ColumnAttention(),
        """
        # . . | . . . . .
        # # . | . . . . .
        # # # | . . . . .
        - - - + - - - - -
        # # # | # . . . .
        # # # | . # . . .
        # # # | # . # . .
        # # # | . # . # .
        # # # | # . # . #
        """,
    ),
    (
        ConvolutionalAttention(window=3),
        """
        # . . | . . . . .
        # # . | . . . . .
        # # # | . . . . .
        - - - + - - - - -
        # # # | # . . . .
        # # # | # # . . .
        # # # | # # # . .
        # # # | # # # # .
        # # # | . # # # #
        """,
    ),
    (
        FullAttention(),
        """
        # . . | . . . . .
        # # . | . . . . .
        # # # | . . . . .
        - - - + - - - - -
        # # # | # . . . .
        # # # | # # . . .
        # # # | # # # . .
        # # # | # # # # .
        # # # | # # # # #
        """,
    ),
]


@pytest.mark.parametrize(("layer", "picture"), STREAMS, ids=[layer.kind for layer, _ in STREAMS])
def test_the_mask_of_a_stream_of_text_and_image_as_a_picture(make_prior, layer, picture):
    """A caption of three words and a grid of three rows and two columns, of which the last code is never read. What the
    mask of a layer shows is what the logits after one layer depend on: words see words causally, codes all words.
    """
    drawn = torch.tensor([[cell == "#" for cell in line.split() if cell != "|"] for line in picture.split("\n")
                          if "+" not in line and line.strip()])  # fmt: skip
    assert torch.equal(attention_mask(layer, vocabulary_of([(11, (3, 2, 1))], 3)), drawn)
    prior = make_prior(grid=(3, 2, 1), caption=3, positions="rotary", attention=layer, depth=1).double()
    codes = torch.zeros(1, 3, 2, 1, dtype=torch.long)
    assert torch.equal(gradients(prior, codes, torch.tensor([[1, 4, -1]])), drawn)


def test_a_window_goes_on_in_the_next_row():
    mask = attention_mask(ConvolutionalAttention(window=3), vocabulary_of([(2, (4, 4, 1))], 1))
    assert mask[1 + 8, 1:].nonzero()[:, 0].tolist() == [3, 4, 5, 7, 8]  # row 2, column 0; 3 and 7 end the rows before


def test_the_row_mask_of_dalle_1_sees_five_codes_of_a_grid_of_four():
    mask = attention_mask(RowAttention(), vocabulary_of([(2, (4, 4, 1))], 6))  # figure 11 (a)
    assert mask[6 + 4 :, 6:].sum(1).tolist() == [5] * 11
    assert mask[6:, :6].all()
    assert torch.equal(mask[:6, :6], torch.ones(6, 6, dtype=torch.bool).tril())


def test_the_layers_of_dalle_1():
    kinds = [layer.kind for layer in layer_attention(Dalle1Attention(), 64)]
    assert kinds[:9] == ["row", "column", "row", "row", "row", "column", "row", "row", "row"]
    assert [i + 1 for i, kind in enumerate(kinds) if kind == "column"] == list(range(2, 64, 4))
    assert [i + 1 for i, kind in enumerate(kinds) if kind == "convolutional"] == [64]
    assert layer_attention(Dalle1Attention(window=5), 1) == [ConvolutionalAttention(window=5)]


def test_a_pattern_is_repeated_until_every_layer_has_an_entry():
    pattern = PatternAttention(layers=(RowAttention(), FullAttention(), ColumnAttention()))
    assert [layer.kind for layer in layer_attention(pattern, 5)] == ["row", "full", "column", "row", "full"]
    assert len(layer_attention(pattern, 2)) == 2


def test_layers_of_one_kind_share_a_mask():
    first, second, third, _ = attention_masks(Dalle1Attention(), vocabulary_of(CODES["large"], 1), 4)
    assert first is third and first is not second


def test_layers_of_one_kind_share_a_mask_on_every_device_and_in_the_decoder(make_prior):
    prior = make_prior(attention=Dalle1Attention(), depth=6)  # rows, columns, and a window
    assert [len(keys.mask) for keys in CachedDecoder(prior).keys] == [12] * 3
    masks = prior.to("meta").network.masks
    first, second, third, *_ = masks.for_layers(masks.distinct)
    assert first is third and first is not second and first.device.type == "meta"
    assert [len(mask) for mask in prior.network.buffers() if mask.dtype == torch.bool] == [12] * 3


def test_full_attention_is_the_default_and_needs_no_mask(make_prior):
    assert TransformerConfig.model_validate({"dim": 32}).attention == FullAttention()
    assert make_prior().network.masks.for_layers([]) == [None, None]


def test_masks_are_no_part_of_the_weights(make_prior):
    assert list(make_prior(attention=RowAttention()).state_dict()) == list(make_prior().state_dict())


def gradients(prior, codes, captions):
    """Which embedded inputs (columns) the logits after each of them (rows) depend on, words first, then codes."""
    embedded = []
    hook = prior.network.token_embedding.register_forward_hook(
        lambda _, __, out: embedded.append(out.double().requires_grad_()) or embedded[-1]
    )
    logits = prior.stream_logits(prior.prefix(captions, 1, captions.device), codes)
    hook.remove()
    each = [position[position.isfinite()].square().sum() for segment in logits for position in segment[0]]
    return torch.stack([torch.autograd.grad(one, embedded, retain_graph=True)[0][0].abs().sum(-1) > 0 for one in each])


@pytest.mark.parametrize(("depth", "flash"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("levels", [CODES["one quantizer"], CODES["levels"]], ids=["one level", "levels"])
@every_attention
def test_logits_depend_on_what_the_masks_of_all_layers_let_through(make_prior, attention, levels, depth, flash):
    options = {"attention": attention, "flash": flash, "depth": depth}
    prior = make_prior(levels=levels, caption=4, positions="rotary", **options).double()
    vocabulary = prior.vocabulary
    reach = torch.eye(vocabulary.length - 1, dtype=torch.long)
    for layer in layer_attention(attention, depth):
        reach = reach + literal_mask(layer, vocabulary, levels).long() @ reach
    codes = torch.zeros(1, *vocabulary.code_axes, dtype=torch.long)
    assert torch.equal(gradients(prior, codes, torch.tensor([[0, 3, 2, -1]])), reach > 0)


@pytest.mark.parametrize("positions", POSITIONS)
@every_attention
def test_gradients_reach_every_parameter(make_prior, attention, positions):
    prior = make_prior(grid=(2, 3, 2), positions=positions, attention=attention, condition_dropout=0.5).train()
    codes = torch.arange(8 * 12).view(8, 2, 3, 2) % 11
    prior(codes, torch.arange(8) % 3).square().mean().backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_attention
def test_options_survive_json(attention):
    config = PriorConfig(
        vocabulary=Vocabulary.of_labels_and_codes(2, (2, 2, 1)), transformer=TransformerConfig(attention=attention)
    )
    assert PriorConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "convolutional", "window": 4}, "odd size, got 4"),
        ({"kind": "dalle1", "window": 0}, "greater than 0"),
        ({"kind": "pattern", "layers": []}, "at least 1 item"),
        ({"kind": "pattern", "layers": [{"kind": "dalle1"}]}, "does not match any of the expected tags"),
        ({"kind": "diagonal"}, "does not match any of the expected tags"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Attention).validate_python(options)


def test_codes_without_rows_and_columns_are_refused():
    label = Segment(name="label", size=1)
    line = Vocabulary(segments=(label, Segment(name="codes", size=4, shape=(6,))))
    assert attention_masks(FullAttention(), line, 1) == [None]
    with pytest.raises(ValueError, match=r"'row' needs codes on rows and columns, found the grid \(6,\)"):
        attention_masks(RowAttention(), line, 1)


def test_a_mask_larger_than_memory_is_refused_before_it_is_made():
    vocabulary = Vocabulary.of_labels_and_codes(2, (2**20, 2**20, 1))
    with pytest.raises(ValueError, match="'column' takes at most 16384 positions, got 1099511627777"):
        attention_masks(ColumnAttention(), vocabulary, 1)
