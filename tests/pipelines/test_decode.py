"""Decoding: pictures are the decoder's, named by key, and belong to the tokenizer that made the tokens."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.base.image_grids import to_uint8
from pipelines.decode import SHOWN, decode, file_names, rows_of_process
from pipelines.models.checkpoint import load_tokenizer
from pipelines.tokens.dataset import TokenDataset


def test_pictures_are_what_the_decoder_makes_of_the_codes(tiny_tokenizer, tiny_tokens, tmp_path):
    found = decode(tiny_tokenizer, tiny_tokens, tmp_path / "out", split="test", max_images=10, batch_size=4)
    split = TokenDataset.open(tiny_tokens).split("test")
    with torch.inference_mode():
        expected = to_uint8(load_tokenizer(tiny_tokenizer).model.decode_codes(split.batch(range(10))["codes"]))
    assert len(found.pictures) == 10
    for row, path in enumerate(found.pictures):
        with Image.open(path) as picture:
            shown = np.asarray(picture).transpose(2, 0, 1).astype(int)
            assert picture.info["key"] == split.keys[row]
        assert np.abs(shown - expected[row].numpy()).max() <= 1  # another batch size may round another way
    with Image.open(found.grid) as grid:
        assert grid.size[0] > 32 * 8


def test_the_tokenizer_inside_the_tokens_is_enough(tiny_tokens, tmp_path):
    assert len(decode(None, tiny_tokens, tmp_path / "out", max_images=3).pictures) == 3


def test_decoding_again_goes_on_where_it_ended(tiny_tokens, tmp_path):
    output = tmp_path / "out"
    first = decode(None, tiny_tokens, output, max_images=3)
    written = {path: path.stat().st_mtime_ns for path in first.pictures}
    assert decode(None, tiny_tokens, output, max_images=3).already_complete
    more = decode(None, tiny_tokens, output, max_images=5)
    assert not more.already_complete
    assert sorted(path.name for path in output.glob("*.png")) == sorted([p.name for p in more.pictures] + ["grid.png"])
    fresh = decode(None, tiny_tokens, tmp_path / "fresh", max_images=5)
    assert more.grid.read_bytes() == fresh.grid.read_bytes()
    assert {path: path.stat().st_mtime_ns for path in first.pictures} == written


def test_pictures_of_other_tokens_are_not_mixed(tiny_tokens, tmp_path):
    decode(None, tiny_tokens, tmp_path / "out", max_images=3)
    with pytest.raises(UserError, match=r"holds other images: split 'test' \(asked: 'train'\)"):
        decode(None, tiny_tokens, tmp_path / "out", split="train", max_images=3)


def test_a_folder_of_something_else_is_never_touched(tiny_tokens, tmp_path):
    (tmp_path / "holiday.png").write_bytes(b"")
    with pytest.raises(UserError, match="was not written by `smalti decode`"):
        decode(None, tiny_tokens, tmp_path, max_images=3)
    with pytest.raises(UserError, match="was not written by `smalti decode`"):
        decode(None, tiny_tokens, tmp_path, max_images=3, overwrite=True)


def test_a_foreign_tokenizer_is_refused_naming_both_sides(make_tokenizer, tiny_tokens, tmp_path):
    other = make_tokenizer(tmp_path / "other", {"kind": "vq", "num_codes": 64, "dim": 8}, seed=1)
    with pytest.raises(UserError, match="do not belong together") as error:
        decode(other, tiny_tokens, tmp_path / "out")
    assert str(other) in str(error.value)
    assert str(tiny_tokens) in str(error.value)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 70, 300, 9000])
def test_processes_share_the_rows_and_the_first_draws_the_overview(count, world):
    shares = [[row for part in rows_of_process(count, rank, world, 8) for row in part] for rank in range(world)]
    assert sorted(row for share in shares for row in share) == list(range(count))
    assert set(range(min(SHOWN, count))) <= set(shares[0])
    assert max(map(len, shares)) - min(map(len, shares)) <= SHOWN + 8


def test_file_names_are_safe_and_differ():
    names = file_names(["a/b.png", "a_b.png", "../../etc/passwd", "", "A/B.PNG", "grid", "é"])
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        assert name.endswith(".png")
        assert name != "grid.png"
        assert not set(name) & set("/\\:")
        assert not name.startswith(".")
