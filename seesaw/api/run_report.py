"""What a run's figures mean, in lines for people, and its report in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seesaw.api.plots.run import run_picture
from seesaw.api.run_figures import PHASES, joint_steps, run_figures
from seesaw.errors import ConfigError
from seesaw.sizes import format_bytes
from seesaw.trace import read_trace

MOST_SHOWN = 5
"""Of what measured and predicted seconds differ in."""
LANES = {"store": "stores", "load": "loads", "weights": "weights", "peer": "pieces from peers"}
STALLS = {
    "wait": "for the stage before",
    "sync": "for the other ranks of a stage",
    "wait for weights": "for weights",
}


def write_report(trace: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """`timeline.png` and `report.txt` in `folder`; returns the figures and the lines. Raises
    ConfigError where the file is no trace, or the folder cannot be made."""
    found = read_trace(trace)
    figures = run_figures(found)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}. Name a folder with -o.") from error
    lines = describe(figures)
    run_picture(found, joint_steps(found), folder / "timeline.png", title_of(figures))
    (folder / "report.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return figures, lines


def title_of(figures: Mapping[str, Any]) -> str:
    about = figures["about"]
    if "decode_layout" not in about:
        return f"{_count(figures['num_ranks'], 'rank')}, {figures['elapsed_s']:.1f} s"
    layouts = about["decode_layout"]
    if about["prefill_layout"] != layouts:
        layouts = f"{about['prefill_layout']} -> {layouts}"
    return f"{Path(about.get('model', '')).name} {layouts}, {figures['elapsed_s']:.1f} s".strip()


def describe(figures: Mapping[str, Any]) -> list[str]:
    """What bounded the run first."""
    lines = [_verdict(figures), ""]
    lines.append(title_of(figures))
    if not figures["is_whole"]:
        lines.append("the trace was cut off: what came last may be missing")
    lines += [f"error: {error.get('message', '')}" for error in figures["errors"]]
    lines += ["", *_phases(figures), *_transitions(figures), *_moved(figures), *_pools(figures)]
    return [*lines, "", *_predicted(figures)]


def _verdict(figures: Mapping[str, Any]) -> str:
    first, *others = figures["bound"]
    text = (
        f"Bound by {first['what']}: {first['seconds']:.2f} s of {figures['elapsed_s']:.2f} s "
        f"({first['share']:.0%})"
    )
    others = [f"{one['what']} {one['share']:.0%}" for one in others if one["share"] >= 0.005]
    if others:
        text += f"; then {', '.join(others)}"
    if figures["predicted"] is None:
        text += " (prompts taken for computing, answers for memory reads: nothing was predicted)"
    return text + "."


def _phases(figures: Mapping[str, Any]) -> list[str]:
    elapsed_s, time_s = figures["elapsed_s"], figures["time_s"]
    lines = ["time, a mean over ranks"]
    for phase in PHASES:
        seconds = figures["phase_s"][phase]
        if seconds:
            lines.append(
                f"  {phase:<11}{seconds:10.3f} s {seconds / elapsed_s:7.1%}, of which "
                f"{time_s[phase]:.3f} s in steps"
            )
    for name, told in (
        ("transition", "between phases, bubbles left out"),
        ("bubbles", "ranks waiting for each other"),
        ("copies", "nothing ran, KV or weights came or went"),
        ("driver", "nothing ran, the driver was busy"),
        ("idle", "nothing ran and nothing moved"),
    ):
        lines.append(f"  {name:<11}{time_s[name]:10.3f} s {time_s[name] / elapsed_s:7.1%}  {told}")
    return lines


def _transitions(figures: Mapping[str, Any]) -> list[str]:
    lines = [
        f"transitions: {figures['num_transitions']}, visible "
        f"{figures['transition_visible_s']:.3f} s in all"
    ]
    for what, seconds in figures["stall_s"].items():
        lines.append(f"  stalled {seconds:.3f} s: {STALLS.get(what, what)}")
    for lane, one in figures["streams"].items():
        lines.append(
            f"  {LANES[lane]}: busy {one['busy_s']:.3f} s, {one['hidden_s'] / one['busy_s']:.0%} "
            "of it behind steps"
        )
    return lines


def _moved(figures: Mapping[str, Any]) -> list[str]:
    if figures["moved"] is None:
        return ["bytes: not in this trace"]
    lines = []
    for kind, told in (
        ("store", "KV stored"),
        ("load", "KV loaded"),
        ("relay", "KV relayed"),
        ("weights", "weights moved"),
    ):
        measured, predicted = (
            figures["moved"][kind][name] for name in ("bytes", "predicted_bytes")
        )
        same = "as predicted" if measured == predicted else f"predicted {format_bytes(predicted)}"
        if measured or predicted:
            lines.append(f"{told} {format_bytes(measured)}, {same}")
    return lines


def _pools(figures: Mapping[str, Any]) -> list[str]:
    lines = []
    pool = figures["decode_pool"]
    if pool is not None and "occupancy" in pool:
        text = f"decode pool {pool['occupancy']:.1%} full while requests wait in the tier"
        if "occupancy_in_decode" in pool:
            text += f", {pool['occupancy_in_decode']:.1%} in decode phases"
        lines.append(f"{text} ({pool['seconds']:.2f} s)")
    if figures["mean_decode_batch"] is not None:
        lines.append(f"{figures['mean_decode_batch']:.1f} rows per decode step")
    if figures["tokens"] is not None:
        seconds, tokens = figures["elapsed_s"], figures["tokens"]
        lines.append(
            f"{tokens['prompt']:,} tokens of prompts and {tokens['decoded']:,} of answers: "
            f"{tokens['prompt'] / seconds:,.0f} and {tokens['decoded'] / seconds:,.0f} a second"
        )
    return lines


def _predicted(figures: Mapping[str, Any]) -> list[str]:
    if figures["predicted"] is None:
        why = figures["about"].get("not_predicted") or "not in this trace"
        return [f"predicted seconds: none ({why})"]
    lines = [
        f"where measured and predicted seconds differ most ({figures['about']['predicted_by']})",
        f"  {'':<44}{'times':>6} {'measured':>10} {'predicted':>10}",
    ]
    for one in figures["predicted"][:MOST_SHOWN]:
        lines.append(
            f"  {one['what']:<44}{one['count']:>6} {one['measured_s']:>8.3f} s "
            f"{one['predicted_s']:>8.3f} s"
        )
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
