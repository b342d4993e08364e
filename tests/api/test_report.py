"""`--output-json`: one JSON value where it was asked for, and nothing else there."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from seesaw.api.report import machine_output
from seesaw.errors import ConfigError

VALUE = {"text": "Größe 🙂", "numbers": [1, 2.5, None]}


def test_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    with machine_output(None) as write:
        write(VALUE)
        print("for people")
    assert capsys.readouterr().out == "for people\n"


def test_standard_output_holds_only_the_value(capsys: pytest.CaptureFixture[str]) -> None:
    with machine_output("-") as write:
        print("a library prints")
        write(VALUE)
        print("and prints again")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == VALUE
    assert captured.err == "a library prints\nand prints again\n"
    assert sys.stdout is not sys.stderr


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")
    with machine_output(str(target)) as write:
        assert target.read_text() == "old"
        write(VALUE)
    assert json.loads(target.read_text(encoding="utf-8")) == VALUE
    assert list(tmp_path.iterdir()) == [target]


def test_a_target_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "missing" / "out.json"):
        with pytest.raises(ConfigError, match="--output-json"), machine_output(str(target)):
            pytest.fail("the work was begun")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_the_stream_cannot_write_is_escaped(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {**VALUE, "file": "no \udcff Unicode"}
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with machine_output("-") as write:
        write(value)
    assert json.loads(stream.buffer.getvalue().decode(encoding)) == value  # type: ignore[attr-defined]
    target = tmp_path / "out.json"
    with machine_output(str(target)) as write:
        write(value)
    assert json.loads(target.read_text(encoding="utf-8")) == value
