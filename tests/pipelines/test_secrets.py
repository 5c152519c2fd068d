"""A secret in a recipe stays in the user's recipe: no file of a run or of a token dataset repeats it."""

import pytest
from datasets import Dataset
from PIL import Image

from pipelines.encode import encode
from pipelines.recipes.data_arguments import data_of
from pipelines.recipes.stages import load_recipe
from pipelines.train import train_recipe

RECIPE = """
kind: tokenizer
output: {folder}/run
data:
  source:
    kind: huggingface
    path: parquet
    data_files: {folder}/images.parquet
    arguments: {{token: hf_SECRET, storage_options: {{password: SECRET}}}}
  preprocess: {{size: 8}}
model:
  backbone: {{kind: conv, widths: [4], residual_blocks: 1, residual_width: 4}}
  bottleneck: {{kind: vq, num_codes: 8, dim: 4}}
  likelihood: {{kind: normal}}
objective: {{weights: {{nll: 1, commitment: 1}}}}
training: {{steps: 2, batch_size: 4}}
"""


@pytest.mark.slow
def test_no_file_that_is_written_holds_the_secret(tmp_path):
    images = [Image.new("RGB", (8, 8), (8 * i, 255 - 8 * i, 0)) for i in range(30)]
    Dataset.from_dict({"image": images}).to_parquet(tmp_path / "images.parquet")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    train_recipe(load_recipe(tmp_path / "recipe.yaml"))
    encode(tmp_path / "run", data_of(str(tmp_path / "recipe.yaml"), tmp_path / "run"), tmp_path / "tokens")
    written = [path for name in ("run", "tokens") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path.name for path in written if b"SECRET" in path.read_bytes()] == []
