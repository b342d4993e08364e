"""What is said of systems under loads: a table for people, plots as plain data."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 170


def describe(figures: Mapping[str, Any]) -> list[str]:
    """Lines: what was run, a row of latencies for each run, another of what its steps asked of the
    model, and the capacities where they were looked for."""
    runs: Sequence[Mapping[str, Any]] = figures["runs"]
    kind = "simulated" if figures["simulated"] else "measured"
    where = f" on {figures['machine']}" if figures["simulated"] else ""
    lines = [
        f"{figures['model']}{where}: {figures['num_requests']} requests of {figures['workload']} "
        f"({figures['arrivals']['kind']}), {kind}; seconds",
        *_latencies(runs, _told(figures["promised"])),
        "",
        *_counts(runs),
    ]
    lines += [f"capacity of {one['policy']}: {one['told']}" for one in figures.get("capacity", ())]
    if figures["interrupted"]:
        lines.append("interrupted: what is above is what was finished until then")
    if files := figures.get("drawn"):
        lines.append(f"drawn: {', '.join(files)}")
    return lines


def _told(promised: Mapping[str, float | None]) -> str:
    bounds = [
        f"{name} {promised[key]:g} s"
        for name, key in (("TTFT", "ttft_s"), ("TBT", "tbt_s"))
        if promised[key] is not None
    ]
    return f"kept: {', '.join(bounds)}" if bounds else ""


def _latencies(runs: Sequence[Mapping[str, Any]], kept: str) -> list[str]:
    """`kept` says what the column of requests that got what they were promised is; empty: no
    such."""
    columns = ["rate/s", "TTFT p50", "p90", "p99", "TBT p50", "p90", "p99", "max", "delay p50",
               "tokens/s", "preempted"]  # fmt: skip
    shows_same = any(one["same_answers"] is not None for one in runs)
    if kept:
        columns += ["kept", "goodput/s", "stalls"]
    if shows_same:
        columns.append("same answers")
    table = _table(columns, kept)
    for one in runs:
        first, between = one["latency_s"]["first_token"], one["latency_s"]["between_tokens"]
        row = [
            f"{one['rate_per_s']:.3g}",
            *(_seconds(first[share]) for share in ("p50", "p90", "p99")),
            *(_seconds(between[share]) for share in ("p50", "p90", "p99", "max")),
            _seconds(one["latency_s"]["delay"]["p50"]),
            f"{one['tokens_per_s']:,.0f}",
            str(one["scheduler"]["num_preemptions"]),
        ]
        if kept:
            stalls = one["num_stalls"]
            row += [
                f"{one['num_met'] / one['num_requests']:.0%}",
                f"{one['goodput_per_s']:.3g}",
                "" if stalls is None else str(stalls),
            ]
        if shows_same:
            row.append("" if one["same_answers"] is None else str(one["same_answers"]))
        table.add_row(_name(one), *row)
    return _lines(table)


def _counts(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of the claims of published policies: how often weights, KV and experts are read, rows that
    tiles waste, decodes and pipeline stages that stand still, changes of a lane's share."""
    columns = ["rate/s", "steps", "of prompts", "of answers", "of both", "KV read", "padded rows",
               "left out", "share changes"]  # fmt: skip
    shows_experts = any(one["expert_loads"] for one in runs)
    shows_bubbles = any(one["bubble_s"] and one["bubble_s"]["max"] for one in runs)
    table = _table(columns + ["experts read"] * shows_experts + ["bubble p50"] * shows_bubbles)
    for one in runs:
        counts = one["counts"]
        row = [
            f"{one['rate_per_s']:.3g}",
            *(str(counts[f"num_{kind}steps"]) for kind in ("", "prompt_", "decode_", "hybrid_")),
            f"{counts['prompt_key_layers'] / max(1, counts['prompt_row_layers']):.2f}x",
            str(counts["num_padded_rows"]),
            str(counts["num_stalls"]),
            str(counts["num_share_changes"]),
        ]
        if shows_experts:
            row.append(f"{one['expert_loads']:,.0f}")
        if shows_bubbles:
            row.append(_seconds(one["bubble_s"]["p50"]))
        table.add_row(_name(one), *row)
    return _lines(table)


def _name(one: Mapping[str, Any]) -> str:
    named: str = one["policy"]
    return f"{named} = {one['policy_run']}" if named.split()[0] == "auto" else named


def _table(columns: Sequence[str], caption: str = "") -> Table:
    table = Table(box=None, pad_edge=False, caption=caption or None, caption_justify="left")
    table.add_column("policy", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _lines(table: Table) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=WIDTH, markup=False).print(table)
    return [line.rstrip() for line in text.getvalue().rstrip().split("\n")]


def _seconds(value: float) -> str:
    """To a tenth of a millisecond below a second, as far as that says anything."""
    return f"{value:.4f}" if value < 1 else f"{value:.2f}"


def plots_of(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The frontier of TTFT and TBT, and with several rates both over the rate; a line for each
    policy. Arguments of `seesaw.api.plots.draw`."""
    runs: Sequence[Mapping[str, Any]] = figures["runs"]
    where = f" on {figures['machine']}" if figures["simulated"] else ""
    title = f"{figures['model']}{where}, {figures['workload']}"
    common = {"kind": "lines", "title": title, "simulated": figures["simulated"]}
    ttft, tbt, rate = "TTFT p50 (s)", "TBT p99 (s)", "requests per second"
    found = [
        common | {"series": _series(runs, "ttft", "tbt"), "x_label": ttft, "y_label": tbt},
    ]
    if len({one["rate_per_s"] for one in runs}) > 1:
        found += [
            common | {"series": _series(runs, "rate", "ttft"), "x_label": rate, "y_label": ttft},
            common | {"series": _series(runs, "rate", "tbt"), "x_label": rate, "y_label": tbt},
        ]
    return found


def _series(
    runs: Sequence[Mapping[str, Any]], x: str, y: str
) -> dict[str, list[tuple[float, float]]]:
    """Points of each policy, by rising rate."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in sorted(runs, key=lambda one: float(one["rate_per_s"])):
        values = {
            "rate": one["rate_per_s"],
            "ttft": one["latency_s"]["first_token"]["p50"],
            "tbt": one["latency_s"]["between_tokens"]["p99"],
        }
        found.setdefault(one["policy"], []).append((values[x], values[y]))
    return found
