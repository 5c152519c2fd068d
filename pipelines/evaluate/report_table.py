"""A report as a table: in `report.md`, and on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from pipelines.base.atomic_files import write_text
from pipelines.base.progress import console

Rows = Sequence[tuple[str, str]]


def write_markdown(folder: Path, title: str, rows: Rows, figures: Mapping[str, str], more: str = "") -> None:
    """Write `report.md`: the rows, those of the `figures` (file name: what it shows) that are in the folder, and `more`
    below them.
    """
    table = "\n".join(f"| {what} | {figure} |" for what, figure in rows)
    shown = "\n\n".join(f"![{text}]({name})" for name, text in figures.items() if (folder / name).is_file())
    write_text(folder / "report.md", f"# {title}\n\n| what | figure |\n|---|---|\n{table}\n\n{shown}{more}\n")


def print_rows(rows: Rows, title: str, title_justify: JustifyMethod = "center") -> None:
    table = Table(title=Text(title), show_header=False, title_justify=title_justify)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
