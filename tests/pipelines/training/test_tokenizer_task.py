"""Stage one as a task: what it shows and refuses, and whose figures it gives."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.base import distributed
from pipelines.base.errors import UserError
from pipelines.data import DataConfig
from pipelines.training.collective import Collective
from pipelines.training.tokenizer_task import TokenizerTask, posterior_stream
from tests.pipelines.training.toy import QUICK
from tokenizer import AutoencoderConfig, CodeUsage, ObjectiveConfig

MODEL = {
    "image_size": 8,
    "channels": 1,
    "backbone": {"kind": "conv", "widths": (4, 8), "residual_blocks": 1, "residual_width": 4},
    "bottleneck": {"kind": "vq", "num_codes": 32, "dim": 4, "kmeans_init": False},
    "likelihood": {"kind": "normal"},
}


def png(number):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)).save(stream, "png")
    return stream.getvalue()


def task_of(folder, held_out, validation_images=64):
    """A task whose validation split holds these pictures."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    folder.mkdir()
    files = {}
    for name, contents in (("train", [png(i) for i in range(24)]), ("validation", held_out)):
        files[name] = str(folder / f"{name}.parquet")
        write_table(pa.table({"image": [{"bytes": content, "path": None} for content in contents]}), files[name])
    source = {"kind": "huggingface", "path": "parquet", "data_files": files}
    data = {"source": source, "preprocess": {"mode": "L", "size": 8}}
    return TokenizerTask(
        DataConfig.model_validate(data),
        AutoencoderConfig.model_validate(MODEL),
        ObjectiveConfig.model_validate({"weights": {"nll": 1, "commitment": 0.25}}),
        QUICK.model_copy(update={"validation_images": validation_images}),
        seed=0,
    )


def models_of(task):
    return {name: optimized.phase.model.eval() for name, optimized in task.phases.items()}


def test_the_figure_shows_readable_images_although_the_first_16_are_broken(tmp_path):
    task = task_of(tmp_path / "data", [b"broken"] * 16 + [png(i) for i in range(24)])
    with torch.no_grad():
        task.save_figures(models_of(task), tmp_path, 1)
    with Image.open(tmp_path / "reconstructions-00000001.png") as figure:
        assert figure.width == pytest.approx(2 * figure.height, rel=0.1)  # 8 columns, 4 rows


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 2), (3, 3, 2), (8, 8, 2), (11, 8, 2), (16, 8, 4)])
def test_each_original_stands_above_its_reconstruction(tmp_path, monkeypatch, count, columns, rows):
    grids = []
    monkeypatch.setattr(
        "pipelines.training.tokenizer_task.save_grid", lambda path, images, columns: grids.append((images, columns))
    )
    task = task_of(tmp_path / "data", [png(100 + i) for i in range(count)])
    model = models_of(task)["tokenizer"]
    monkeypatch.setattr(model, "reconstruct", lambda images, labels: 255 - images)
    task.save_figures({"tokenizer": model}, tmp_path, 1)
    ((images, found),) = grids
    assert (found, len(images) // found) == (columns, rows)
    for place in range(len(images) - columns):
        if place // columns % 2 == 0:
            assert torch.equal(images[place + columns], 255 - images[place])


def test_broken_images_where_validation_reads_are_refused_before_training(tmp_path):
    with pytest.raises(UserError, match=r"none of the first 8 validation images can be read.*validation_images"):
        task_of(tmp_path / "data", [b"broken"] * 8 + [png(1)] * 8, validation_images=8)


def test_a_held_out_image_has_a_random_stream_of_its_own():
    drawn = {
        (seed, key): torch.rand(1, generator=posterior_stream(seed, key)).item() for seed in (0, 1) for key in "abc"
    }
    assert len(set(drawn.values())) == len(drawn)
    assert drawn[0, "a"] == torch.rand(1, generator=posterior_stream(0, "a")).item()


def test_codes_of_all_processes_count_as_used(tmp_path, monkeypatch):
    """Here the other processes have seen every code equally often."""

    def others(self):
        self.counts += 10**6

    monkeypatch.setattr(CodeUsage, "all_reduce", others)
    task = task_of(tmp_path / "data", [png(1), png(2)])
    with torch.no_grad():
        figures = task.validate(models_of(task), Collective(distributed.start()))
    assert (figures["usage"], figures["perplexity"]) == (1.0, pytest.approx(32, rel=1e-3))
