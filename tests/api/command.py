"""Runs a command of seesaw in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from seesaw import cli


def run(args: list[str]) -> int:
    """Its exit code."""
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def run_json(args: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    """What it writes with `--output-json -`, and nothing else."""
    assert run([*args, "--output-json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(args: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """What it tells when it ends with `code`, having written nothing else."""
    assert run(args) == code
    told = capsys.readouterr()
    assert told.out == ""
    return told.err
