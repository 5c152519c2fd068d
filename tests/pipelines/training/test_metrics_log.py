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
