"""Outputs that cannot be claimed: files, folders of others, places that cannot be written."""

from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.hostile_inputs.case import Case
from tests.benchmarks.hostile_inputs.fixture import write

COMMANDS = {
    "train": "train tokenizer.yaml output={}",
    "train prior": "train prior.yaml tokens=done/tokens output={}",
    "run": "run pipeline.yaml output={}",
    "encode": "encode done/tokenizer -o {}",
    "decode": "decode done/tokens -o {}",
    "sample": "sample done -o {}",
    "reconstruct": "reconstruct done/tokenizer -o {}",
}
TARGETS = ("file", "file/below", "loose", "x" * 300, "photos", "/proc/nowhere", ".", "done/codes.png", "done")


def occupy() -> None:
    write("file", "a file")
    write("photos/cat.png", "a cat")
    Path("loose").symlink_to("nowhere")


def outputs() -> Iterator[Case]:
    for name, command in COMMANDS.items():
        for target in TARGETS:
            if (name, target) == ("run", "done"):
                continue  # its own finished output
            arguments = command.format(target).split()
            yield Case("output", f"{name} -> {target[:20]}", arguments, occupy)
            yield Case("output", f"{name} -> {target[:20]} --overwrite", [*arguments, "--overwrite"], occupy)
