"""Samples under their prompts: which of them training has shown, and where they stand in the figure."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.base.image_grids import save_images
from pipelines.evaluate import prompt_figure
from pipelines.evaluate.prompt_figure import draw_prompts, report_prompts
from pipelines.evaluate.samples import Samples
from pipelines.tokens.captions import unseen_captions


def split_of(*texts: str | None) -> Any:
    """The captions of a split, all that is read of it."""
    return SimpleNamespace(texts=list(texts) or None)


def samples_of(folder: Path, prompts: list[str] | None, number: int) -> Samples:
    """Grey images, each of its own level."""
    levels = torch.arange(1, number + 1, dtype=torch.uint8) * 10
    files = [folder / f"{row}.png" for row in range(number)]
    save_images(files, levels.view(-1, 1, 1, 1).expand(-1, 3, 8, 8))
    titles = None if prompts is None else [prompts[row % len(prompts)] for row in range(number)]
    return Samples(folder, files, [-1] * number, None, [0.0] * number, prompts=titles)


def test_a_caption_is_seen_whatever_its_case_and_white_space():
    train = split_of("A Red  circle\n", None, "a blue cross")
    captions = ["a red circle", "\tA BLUE\u00a0cross ", "a red", "a red circle left", "A red", "a red"]
    assert unseen_captions(train, captions) == ["a red", "A red", "a red circle left"]


def test_without_captions_in_training_every_prompt_is_unseen():
    assert unseen_captions(split_of(), ["a", "b", "a"]) == ["a", "b"]


def test_distinct_prompts_are_counted_and_drawn(tmp_path):
    samples = samples_of(tmp_path, ["seen", "new", "newer"], 7)
    found = report_prompts(tmp_path / "prompts.png", samples, split_of("seen"))
    assert found == {"distinct": 3, "unseen": 2} and (tmp_path / "prompts.png").is_file()


def grid_of(monkeypatch, tmp_path, samples: Samples, unseen: set[str]) -> tuple[list[list[int]], list[str]]:
    """Of each tile that was drawn the levels of its images, and the titles."""
    found: dict[str, Any] = {}

    def save_grid(path, tiles, columns, captions, scale):
        found.update(tiles=tiles, titles=captions)

    monkeypatch.setattr(prompt_figure, "save_grid", save_grid)
    draw_prompts(tmp_path / "prompts.png", samples, unseen)
    step = 8 + prompt_figure.GAP
    return [(tile[0, 4, 4::step]).tolist() for tile in found["tiles"]], found["titles"]


def test_samples_of_a_prompt_stand_side_by_side_and_unseen_prompts_are_marked(monkeypatch, tmp_path):
    samples = samples_of(tmp_path, ["seen", "new"], 6)
    levels, titles = grid_of(monkeypatch, tmp_path, samples, {"new"})
    assert levels == [[10, 30, 50], [20, 40, 60]] and titles == ["seen", "* new"]


def test_every_prompt_shows_as_many_samples(monkeypatch, tmp_path):
    levels, _ = grid_of(monkeypatch, tmp_path, samples_of(tmp_path, ["a", "b"], 5), set())
    assert levels == [[10, 30], [20, 40]]
    levels, titles = grid_of(monkeypatch, tmp_path, samples_of(tmp_path, ["a"], 9), set())
    assert levels == [[10, 20, 30, 40]] and titles == ["a"]


def test_the_figure_shows_the_first_prompts_of_many(monkeypatch, tmp_path):
    prompts = [str(number) for number in range(40)]
    levels, titles = grid_of(monkeypatch, tmp_path, samples_of(tmp_path, prompts, 20), set())
    assert titles == prompts[:20] and levels[19] == [200]
    monkeypatch.setattr(prompt_figure, "MOST_PROMPTS", 3)
    assert grid_of(monkeypatch, tmp_path, samples_of(tmp_path, prompts, 20), set())[1] == ["0", "1", "2"]


def test_the_figure_is_a_picture_of_all_prompts(tmp_path):
    draw_prompts(tmp_path / "prompts.png", samples_of(tmp_path, ["a", "b", "c", "d", "e"], 20), {"a"})
    with Image.open(tmp_path / "prompts.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
    assert {(level * 10,) * 3 for level in range(1, 21)} <= colours


def test_samples_without_prompts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="samples without prompts"):
        draw_prompts(tmp_path / "prompts.png", samples_of(tmp_path, None, 2), set())
