import json

import pytest
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.training.metrics_log import MetricsLog, check_trackers, draw_curves, read_metrics


def test_resuming_drops_what_came_after_the_state_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.write(step, "train", {"loss": float(step)})
    with path.open("a") as file:
        file.write('{"step": 4, "sp')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    MetricsLog(path, 2).write(3, "train", {"loss": 9.0})
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 2.0, 9.0]


@pytest.mark.parametrize(
    "bad", ["[]", "{}", "5", "null", '{"step": "x", "split": "train"}', '{"step": 1}', "[" * 10**5, '"\xff"']
)
def test_a_line_that_is_none_of_ours_is_left_out(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "split": "train", "loss": 2.5}\n'
    path.write_bytes(good.encode() + bad.encode("latin-1") + b"\n" + good.encode())
    assert read_metrics(path) == [{"step": 1, "split": "train", "loss": 2.5}] * 2
    MetricsLog(path, 1)
    assert path.read_text() == 2 * good
    draw_curves(path, tmp_path / "curves.png")


def test_values_that_are_no_numbers_are_not_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "split": "train", "a": "text", "b": {10**400}, "c": NaN, "d": [1], "e": 1}}')
    assert read_metrics(path) == [{"step": 1, "split": "train", "c": None, "e": 1}]


def test_every_line_is_json(tmp_path):
    """NaN is not: no other program reads it."""
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.write(1, "train", {"loss": float("nan"), "error": float("-inf"), "psnr": 1.0})
    (line,) = log.path.read_text().splitlines()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found == {"step": 1, "split": "train", "loss": None, "error": None, "psnr": 1.0}


def test_curves_are_a_picture(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    for step in range(1, 9):
        log.write(step, "train", {"loss": 1 / step, "psnr": float(step)})
    log.write(8, "validation", {"loss": 0.2})
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 300 and len(picture.convert("RGB").getcolors(10**6) or []) > 10


def test_an_absent_tracker_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'wandb' is not installed.*smalti\[wandb\]"):
        check_trackers(("wandb",))
