"""What `smalti evaluate` has found, as rows for people: the figure, its error, and what it compares with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.base.atomic_files import write_json
from pipelines.base.errors import UserError
from pipelines.evaluate.caption_check import FIGURE
from pipelines.evaluate.caption_table import caption_rows, caption_table
from pipelines.evaluate.image_likelihood import mean_of
from pipelines.evaluate.label_table import label_rows, label_table
from pipelines.evaluate.report_table import print_rows, write_markdown
from pipelines.evaluate.row_figures import RowFigures
from pipelines.training.metrics_log import finite_or_none
from tokenizer import Autoencoder

Report = Mapping[str, Any]
FIGURES = {
    "likelihood.png": "Bounds of -ln p(x) of single images",
    "latents.png": "KL of every latent unit, and the aggregate posterior beside the prior",
    "mutual_information.png": "Which latent unit tells about which factor",
    FIGURE: "Samples under their captions, and what is wrong with them",
}
NAMES = {
    "negative_elbo": "negative ELBO",
    "nll": "importance-weighted NLL",
    "reconstruction_nll": "-ln p(x | z)",
    "psnr": "PSNR of reconstructions",
    "effective_draws": "effective draws",
    "bits_per_token": "bits per token of the prior",
    "bits_per_token_without_caption": "… without the captions",
}
NATS = ("negative_elbo", "nll", "reconstruction_nll")


def meaning_of(model: Autoencoder, exact: bool) -> str:
    """What kind of number the likelihood is, and which other figures it compares with. `exact`: every pixel of the
    images is one of the values that the likelihood knows.
    """
    bins, kind = model.likelihood.bins, model.config.likelihood.kind
    if bins is None:
        return (
            f"{kind}: a density over continuous pixels in [0, 1], which may be negative. It compares with other "
            "densities on the same range, never with a probability of discrete pixels"
        )
    values = "black or white pixels" if bins == 2 else f"pixels of {bins} values"
    if not exact:
        return (
            f"{kind}: a probability of {values}, but the images have others: this is the mean over random roundings, "
            "no likelihood of these images (see data.binarize)"
        )
    return f"{kind}: a probability of {values}. It compares with other probabilities of {values}, never with a density"


def figures_of(found: Sequence[RowFigures]) -> dict[str, Any]:
    """The mean of each figure over the images that could be read, and its standard error.

    Raises:
        UserError: none could be read.
    """
    readable = [row.figures for row in found if row.figures]
    if not readable:
        raise UserError(f"data: none of {len(found):,} images can be read")
    means = {name: mean_of(figures[name] for figures in readable) for name in readable[0]}
    return {name: finite_or_none(asdict(mean)) for name, mean in means.items()}


def bits_per_dim(nats: float, dims: int) -> float:
    return nats / dims / math.log(2)


def rows(report: Report) -> list[tuple[str, str]]:
    """The report as lines."""
    lines = [("images", f"{report['images']:,} of {report['split']}")]
    for name, found in report["figures"].items():
        lines.append((NAMES[name], _with_error(name, found, report)))
    lines.append(("likelihood", report["likelihood"]["meaning"]))
    if health := report["latent_health"]:
        lines.append(("latent", f"{health['verdict']}: {health['reason']}"))
    if codebook := report["codebook"]:
        lines.append(("codebook", f"{codebook['verdict']}: {codebook['reason']}"))
    if scores := report["disentanglement"]:
        lines += [(name, f"{value:.4f}") for name, value in _scores(scores).items()]
    if labels := report.get("labels"):  # reports from before samples were checked lack the key
        lines += label_rows(labels)
    if captions := report.get("captions"):
        lines += caption_rows(captions)
    return lines + [("note", note) for note in report["notes"]]


def write_report(folder: Path, report: Report, title: str) -> None:
    """Write `report.md`, then `report.json`, whose presence means that the evaluation is complete."""
    labels, captions = report.get("labels"), report.get("captions")
    tables = (label_table(labels) if labels else "") + (caption_table(captions) if captions else "")
    write_markdown(folder, title, rows(report), FIGURES, tables)
    write_json(folder / "report.json", report)


def print_report(report: Report, title: str) -> None:
    print_rows(rows(report), title, title_justify="left")


def is_complete(report: Report) -> bool:
    """Whether every figure is there, as a number where a number belongs."""
    try:
        return bool(rows(report))
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _with_error(name: str, found: Mapping[str, Any], report: Report) -> str:
    mean, error = found["mean"], found["standard_error"]
    if mean is None:
        return "not a finite number"
    spread = "" if error is None else f" ± {error:.2f}"
    if name == "psnr":
        return f"{mean:.2f}{spread} dB"
    if name.startswith("bits_per_token"):
        return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"
    if name not in NATS:
        return f"{mean:,.1f}{spread} of {report['draws']:,}"
    bits, dims = bits_per_dim(mean, report["dims"]), report["dims"]
    bits_error = "" if error is None else f" ± {bits_per_dim(error, dims):.4f}"
    draws = f", {report['draws']:,} draws an image" if name == "nll" else ""
    return f"{mean:.2f}{spread} nats an image, {bits:.4f}{bits_error} bits per dim{draws}"


def _scores(found: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a disentanglement report that were computed."""
    scores: dict[str, float] = {"MIG": found["mig"]}
    if found["factor_vae"] is not None:
        scores["FactorVAE score"] = found["factor_vae"]["score"]
    if found["sap"] is not None:
        scores["SAP"] = found["sap"]["score"]
    if found["dci"] is not None:
        scores |= {f"DCI {name}": found["dci"][name] for name in ("disentanglement", "completeness", "informativeness")}
    return scores
