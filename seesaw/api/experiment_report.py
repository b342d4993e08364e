"""What `seesaw simulate` says of experiments: a line for each, and the figures of one as tables.
Knows none of them: figures are plain data, and their shape says how to show them."""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from seesaw.simulate.experiments import EXPERIMENTS, find

WIDTH = 140
MOST_COLUMNS = 10


def listing() -> list[str]:
    """Name and first sentence of each experiment; of its module where it has none of its own."""
    runs = {name: find(name) for name in EXPERIMENTS}
    texts = [inspect.getdoc(run) or sys.modules[run.__module__].__doc__ for run in runs.values()]
    sentences = [" ".join((text or "").split()).split(". ")[0].rstrip(".") for text in texts]
    return [f"{name:<18}{one}" for name, one in zip(runs, sentences, strict=True)]


def describe(name: str, figures: Mapping[str, Any]) -> list[str]:
    """Lines of text, of all figures but the `plots`."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, markup=False)
    console.print(f"experiment {name}, simulated")
    for key, value in figures.items():
        for part in _parts(_text(key), value) if key != "plots" else ():
            console.print(part)
    return [line.rstrip() for line in text.getvalue().rstrip().split("\n")]


def _parts(title: str, value: Any) -> Iterator[str | Table]:
    """A line of what is single, a table of rows that are alike, else what each item is."""
    columns = _columns(value)
    if columns is None:
        yield f"{title}: {_text(value)}"
    elif all(_columns(one) is None for one in columns.values()):
        yield f"{title}: " + "; ".join(f"{_text(key)}: {_text(columns[key])}" for key in columns)
    else:
        rows = {_text(name): _columns(row) or {} for name, row in columns.items()}
        if isinstance(value, Mapping) and any(
            _columns(one) is not None for row in rows.values() for one in row.values()
        ):
            for name, one in columns.items():
                yield from _parts(f"{title}, {_text(name)}", one)
        else:
            yield _table(title, {name: _flat(row) for name, row in rows.items()})


def _columns(value: Any) -> Mapping[Any, Any] | None:
    """What has a name in it: of a mapping, points (x, y) or a list of rows; None of a value."""
    if isinstance(value, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in value):
        return dict(value)
    if isinstance(value, (list, tuple)) and any(isinstance(one, Mapping) for one in value):
        return dict(enumerate(value, 1))
    return value if isinstance(value, Mapping) else None


def _flat(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """With what lies one level below, by both names; what is deeper is for the JSON."""
    parts = [
        {f"{key} {name}": one for name, one in value.items()} if isinstance(value, Mapping)
        else {key: value} for key, value in row.items()
    ]  # fmt: skip
    return {key: one for part in parts for key, one in part.items() if _columns(one) is None}


def _table(title: str, rows: Mapping[str, Mapping[Any, Any]]) -> Table:
    columns: list[Any] = list(dict.fromkeys(column for row in rows.values() for column in row))
    if len(columns) > MOST_COLUMNS:
        turned = {_text(one): {name: rows[name].get(one, "") for name in rows} for one in columns}
        return _table(title, turned)
    if not any(isinstance(one, str) for one in columns):
        columns.sort()
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in columns:
        table.add_column(_text(column), justify="right")
    for name, row in rows.items():
        table.add_row(name, *(_text(row.get(column, "")) for column in columns))
    return table


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("_", " ")
