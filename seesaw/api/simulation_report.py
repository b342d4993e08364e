"""What `seesaw simulate` says to people: one simulation in a few lines, several in a table."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.estimate import Estimate
from seesaw.simulate.results import Result
from seesaw.sizes import format_bytes

WIDTH = 140


def describe(result: Result) -> list[str]:
    """Lines of text; all seconds are those of the simulated machine."""
    lines = [
        f"{result.model} on {result.machine} in {result.layouts}, policy {result.policy}: "
        f"{result.num_requests} requests of {result.workload} ({result.arrivals}) in "
        f"{result.elapsed_s:,.1f} s, simulated",
        f"{result.requests_per_s:.3f} requests/s, {result.output_tokens_per_s:,.1f} tokens/s out, "
        f"{result.tokens_per_s:,.1f} in and out (steady {result.steady.tokens_per_s:,.1f} for "
        f"{result.steady.seconds:,.1f} s, tail {result.tail.tokens_per_s:,.1f} for "
        f"{result.tail.seconds:,.1f} s)",
        "time: " + ", ".join(
            f"{name} {seconds:,.1f} s" for name, seconds in result.phase_s.items() if seconds
        ) + f"; devices compute {min(result.busy_share):.0%} to {max(result.busy_share):.0%} of it",
        f"{result.mean_decode_batch:.1f} rows per decode step, {result.num_preemptions} "
        "preemptions",
    ]  # fmt: skip
    if result.num_transitions:
        moved = ", ".join(
            f"{format_bytes(nbytes)} ({source})"
            for source, nbytes in result.weight_bytes_moved.items()
            if nbytes and source != "resident"
        )
        lines.append(
            f"{result.num_transitions} transitions, {result.transition_s:.2f} s in each replica; "
            "weights moved "
            f"{moved or 'none'}; KV stored {format_bytes(result.kv_store_bytes)}, loaded "
            f"{format_bytes(result.kv_load_bytes)}"
            + (f", relayed {format_bytes(result.kv_relay_bytes)}" if result.kv_relay_bytes else "")
        )
    if result.expert_loads:
        lines.append(f"{result.expert_loads:,.0f} times the weights of an expert were read")
    if result.bubble_s.mean:
        lines.append(
            f"pipeline bubbles before a request's steps, over all stages: mean "
            f"{result.bubble_s.mean:,.2f} s, p50 {result.bubble_s.p50:,.2f} s, p99 "
            f"{result.bubble_s.p99:,.2f} s"
        )
    if result.num_lost:
        lines.append(f"{result.num_lost} requests were lost with a rank and ran again")
    for name, spread in result.latency_s.items():
        lines.append(
            f"{name.replace('_', ' '):<14} mean {spread.mean:10.4f} s   p50 {spread.p50:10.4f}   "
            f"p90 {spread.p90:10.4f}   p99 {spread.p99:10.4f}"
        )
    return lines


def comparison(results: Sequence[Result], estimates: Sequence[Estimate | None]) -> list[str]:
    """Lines of a table, fastest first, with what the plan had estimated."""
    first = results[0]
    table = Table(
        box=None,
        pad_edge=False,
        title=f"{first.model} on {first.machine}: {first.num_requests} requests of "
        f"{first.workload} ({first.arrivals}), simulated",
        title_justify="left",
    )
    table.add_column("layouts")
    # A plan is of a job that is all there when it begins.
    estimated = "estimated" if first.arrivals == "closed" else "if all at once"
    for name in ("policy", "requests/s", "tokens/s", estimated, "batch", "changes", "p50 s"):
        table.add_column(name, justify="right")
    order = sorted(range(len(results)), key=lambda at: -results[at].requests_per_s)
    for at in order:
        result, estimate = results[at], estimates[at]
        table.add_row(
            _short(result.layouts),
            result.policy,
            f"{result.requests_per_s:.3f}",
            f"{result.tokens_per_s:,.0f}",
            "" if estimate is None else f"{estimate.tokens_per_s:,.0f}",
            f"{result.mean_decode_batch:.1f}",
            str(result.num_transitions),
            f"{result.latency_s['end_to_end'].p50:,.1f}",
        )
    text = io.StringIO()
    Console(file=text, width=WIDTH).print(table)
    caveats = {one.caveat for one in estimates if one is not None and one.caveat}
    return [*text.getvalue().rstrip().split("\n"), *sorted(caveats)]


def _short(layouts: str) -> str:
    """`pp8 -> tp8` of `dp1-tp1-pp8 -> dp1-tp8-pp1`, as a plan has it."""
    parts = (ParallelLayout.parse(text).short for text in layouts.split(" -> "))
    return " -> ".join(parts)
