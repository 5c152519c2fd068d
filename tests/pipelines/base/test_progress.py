"""What a command says is printed as it is."""

import io

import pytest
from rich.console import Console

from pipelines.base import progress

PATH = "runs/[red]mine[/x]"


@pytest.fixture
def printed(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=stream, width=40, force_terminal=True, color_system=None))
    return stream


def test_a_message_is_neither_markup_nor_broken_into_lines(printed):
    text = f"{PATH}: " + "a long message of many words, 12 of them " * 4
    progress.say(text)
    assert printed.getvalue() == text + "\n"


def test_a_bar_shows_its_description_as_it_is(printed):
    with progress.progress(3, PATH) as meter:
        meter.advance(3)
    assert PATH in printed.getvalue()
