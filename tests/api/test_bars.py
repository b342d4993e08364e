"""Progress of what can be counted: a bar on a terminal, lines elsewhere; short work has neither."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from seesaw.api import bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 0.0
    monkeypatch.setattr(bars, "time", SimpleNamespace(monotonic=lambda: now_s))
    with bars.shown("auto at 2/s") as progress:
        for done in range(1, 1001):
            now_s = done / 10
            progress(done, 1000)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "auto at 2/s: 300 of 1,000",
        "auto at 2/s: 600 of 1,000",
        "auto at 2/s: 900 of 1,000",
    ]


@pytest.mark.parametrize(("after_s", "is_shown"), [(0, True), (1000, False)])
def test_a_bar_on_a_terminal(
    after_s: float, is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(bars, "SHOW_AFTER_S", after_s)
    with bars.shown("requests") as progress:
        progress(1, 4)
    assert ("requests:" in screen.getvalue()) == is_shown
