"""Scores of images by CLIP (arXiv 2103.00020), or another model of `transformers` with the same interface."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.image_grids import to_pil
from pipelines.models.hub import local_folder

FILES = ["*.json", "*.txt", "*.safetensors", "*.model"]
IMAGES_PER_PASS = 64


class ClipScorer:
    """The similarity of images and a text under a CLIP model, times its temperature.

    Raises:
        UserError: transformers is not installed; no such folder or repository, or it holds no such model.
    """

    def __init__(self, name_or_path: str, device: torch.device):
        if importlib.util.find_spec("transformers") is None:
            raise UserError(
                "rerank: clip needs transformers, which is not installed; expected after `pip install smalti[clip]`"
            )
        self.folder, self.device = local_folder(name_or_path, files=FILES), device
        self.weights = sorted(self.folder.glob("*.safetensors"))
        if not self.weights:
            raise UserError(f"rerank: {self.folder} holds no *.safetensors; expected the folder of a CLIP model")
        self.processor, self.model = _load(self.folder)
        self.model.to(device)

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "n c h w"], text: str | None) -> Float[Tensor, " n"]:
        """Of images in [0, 1] and one text, which is cut off where it is too long."""
        scores = []
        for part in images.split(IMAGES_PER_PASS):
            pictures = [to_pil(image).convert("RGB") for image in part]
            inputs = self.processor(text=[text], images=pictures, padding=True, truncation=True, return_tensors="pt")
            scores.append(self.model(**inputs.to(self.device)).logits_per_image[:, 0].float().cpu())
        return torch.cat(scores)


def _load(folder: Path) -> tuple[Any, Any]:
    """The processor and the model in a folder; neither code nor a pickle of it is run."""
    from transformers import AutoModel, AutoProcessor

    try:
        with _quiet():
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:  # the readers of weights, configurations and words raise whatever they like
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"rerank: {folder} cannot be read as a CLIP model ({reason})") from error
    if not hasattr(model, "logit_scale"):
        raise UserError(
            f"rerank: {folder} holds a {type(model).__name__}; expected a model of images and texts, as CLIP"
        )
    return processor, model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars and warnings, which it shows again afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
