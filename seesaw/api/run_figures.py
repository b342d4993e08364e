"""Figures of a run from its trace: where the time of its ranks went, what moved, how full pools
were, and what was predicted of all that.

Seconds of ranks are means over them, so that parts add up to the run. Knows no file and no plot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from seesaw.errors import ConfigError
from seesaw.layout import ParallelLayout
from seesaw.trace import DRIVER, Counted, Instant, Span, Trace, kind_of

PHASES = ("prefill", "decode")
COPIES = ("store", "load", "relay")
"""Of KV."""
Interval = tuple[float, float]
Sums = defaultdict[str, float]


def run_figures(trace: Trace) -> dict[str, Any]:
    """Plain data for JSON; None where the trace does not say. Raises ConfigError where no rank
    computed anything."""
    lanes: defaultdict[tuple[int, str], list[Span]] = defaultdict(list)
    for span in joint_steps(trace):
        lanes[span.rank, span.lane].append(span)
    ranks = sorted(
        rank
        for rank, lane in lanes
        if lane == "compute" and any(kind_of(span.name) in PHASES for span in lanes[rank, lane])
    )
    if not ranks:
        raise ConfigError("the trace has no steps: nothing was computed while it was written.")
    begin_s = min(lanes[rank, "compute"][0].start_s for rank in ranks)
    end_s = max(span.end_s for rank in ranks for span in lanes[rank, "compute"])
    driver = _merged((span.start_s, span.end_s) for span in lanes[DRIVER, "driver"])
    size = max(1, len(ranks) // trace.about.get("num_replicas", 1))
    ends = {rank: _phase_ends(lanes[rank, "compute"]) for rank in ranks}
    time = _mean([
        _rank_time(
            rank, lanes, [ends[one] for one in ranks if one // size == rank // size], driver,
            (begin_s, end_s),
        )
        for rank in ranks
    ])  # fmt: skip
    elapsed_s = end_s - begin_s
    steps = [one.args for one in trace.instants if kind_of(one.name) == "step"]
    return {
        "about": trace.about,
        "is_whole": trace.is_whole,
        "num_ranks": len(ranks),
        "elapsed_s": elapsed_s,
        "phase_s": {phase: time[f"in {phase}"] for phase in PHASES},
        "num_transitions": sum(len(ends[rank]) for rank in ranks[::size]),
        "transition_visible_s": time["transition"],
        "time_s": {
            name: time[name]
            for name in (
                "prefill", "decode", "transition", "bubbles", "copies", "driver", "idle",
            )
        },
        "stall_s": _stalls(lanes, ranks),
        "streams": _streams(lanes, ranks),
        "moved": _moved(trace.instants, steps),
        "decode_pool": _occupancy(trace),
        "num_steps": len(steps) or None,
        "mean_decode_batch": _mean_batch(steps),
        "tokens": _tokens(steps),
        "predicted": _predicted(trace.instants, steps),
        "bound": _bound(time, steps, elapsed_s),
        "errors": [one.args for one in trace.instants if one.name == "error"],
        "num_aborts": sum(one.name == "abort" for one in trace.instants),
    }  # fmt: skip


def joint_steps(trace: Trace) -> list[Span]:
    """The spans, with those of steps that several ranks compute together cut in two: until the last
    of them begins, the others wait: `sync`."""
    tp = {
        phase: ParallelLayout.parse(trace.about[f"{phase}_layout"]).tp
        for phase in PHASES
        if f"{phase}_layout" in trace.about
    }
    last_s: dict[tuple[int, str], float] = {}
    firsts: dict[tuple[int, str], float] = {}  # by rank
    for span in trace.spans:
        if span.lane == "compute" and kind_of(span.name) in tp:
            firsts.setdefault((span.rank, span.name), span.start_s)
    for (rank, name), start_s in firsts.items():
        group = (rank // tp[kind_of(name)], name)
        last_s[group] = max(start_s, last_s.get(group, start_s))
    found = []
    for span in trace.spans:
        kind = kind_of(span.name)
        if span.lane != "compute" or kind not in tp:
            found.append(span)
            continue
        begin_s = min(last_s[span.rank // tp[kind], span.name], span.end_s)
        if begin_s > span.start_s:
            found.append(span._replace(name=f"sync {span.name.split()[-1]}", end_s=begin_s))
        if begin_s < span.end_s:
            found.append(span._replace(start_s=max(begin_s, span.start_s)))
    return sorted(found, key=lambda span: (span.start_s, span.end_s))


# -- the time of ranks -----------------------------------------------------------------------------


def _phase_ends(compute: Sequence[Span]) -> list[float]:
    """When a rank had done the last step of each phase that another one followed."""
    steps = [span for span in compute if kind_of(span.name) in PHASES]
    return [a.end_s for a, b in pairwise(steps) if kind_of(a.name) != kind_of(b.name)]


def _rank_time(
    rank: int, lanes: dict[tuple[int, str], list[Span]], ends: Sequence[list[float]],
    driver: list[Interval], whole: Interval,
) -> Sums:  # fmt: skip
    """Seconds of one rank, which add up to `whole` but for those `in` a phase, which are its steps
    and what is between them. Between two phases all is the transition's but bubbles of the
    pipeline: until the last rank has done the phase before (`ends`, of all ranks of the replica),
    and waits for a stage. What is left is the driver's where it was busy, the copies' where KV or
    weights came or went, and idle else."""
    found: Sums = defaultdict(float)
    busy: list[Interval] = []
    phase, last_s, changes = "", whole[0], 0
    waits = {"wait": 0.0, "sync": 0.0}  # since the last step
    for span in lanes[rank, "compute"]:
        kind, seconds = kind_of(span.name), span.end_s - span.start_s
        if kind in waits:
            waits[kind] += seconds
            busy.append((span.start_s, span.end_s))
        if kind not in PHASES:
            continue
        if phase and kind != phase:
            through_s = max(own[changes] for own in ends if changes < len(own))
            gap_s = span.start_s - last_s - waits["wait"]
            drain_s = min(max(0.0, through_s - last_s), gap_s)
            changes += 1
            found["bubbles"] += drain_s + waits["wait"]
            found["transition"] += gap_s - drain_s
            found[f"in {phase}"] += drain_s
            found[f"in {kind}"] += waits["wait"]
            busy.append((last_s, span.start_s))
        else:
            found[f"in {kind}"] += span.start_s - last_s if phase else 0.0
            found["bubbles"] += sum(waits.values())
        found[kind] += seconds
        found[f"in {kind}"] += seconds
        busy.append((span.start_s, span.end_s))
        phase, last_s, waits = kind, span.end_s, dict.fromkeys(waits, 0.0)
    found["bubbles"] += sum(waits.values())
    free = _gaps(_merged(busy), whole)
    of_driver = _overlap(free, driver)
    moving = [
        (span.start_s, span.end_s)
        for lane in ("store", "load", "weights", "peer")
        for span in lanes[rank, lane]
    ]
    found["driver"] = sum(end - start for start, end in of_driver)
    left = _overlap(free, _gaps(of_driver, whole))
    found["copies"] = sum(end - start for start, end in _overlap(left, _merged(moving)))
    found["idle"] = sum(end - start for start, end in left) - found["copies"]
    return found


def _mean(parts: Sequence[Sums]) -> Sums:
    total: Sums = defaultdict(float)
    for part in parts:
        for name, seconds in part.items():
            total[name] += seconds / len(parts)
    return total


def _stalls(lanes: dict[tuple[int, str], list[Span]], ranks: Sequence[int]) -> dict[str, float]:
    """Seconds in which computing was held up, by what it waited for."""
    found: Sums = defaultdict(float)
    for rank in ranks:
        for span in lanes[rank, "compute"]:
            if kind_of(span.name) not in PHASES:
                found[kind_of(span.name)] += (span.end_s - span.start_s) / len(ranks)
    return dict(found)


def _streams(
    lanes: dict[tuple[int, str], list[Span]], ranks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Of each stream seconds in which it was busy, and those of them in which the rank computed."""
    found: dict[str, dict[str, float]] = {}
    for lane in ("store", "load", "weights", "peer"):
        busy_s = hidden_s = 0.0
        for rank in ranks:
            busy = _merged((span.start_s, span.end_s) for span in lanes[rank, lane])
            steps = _merged(
                (span.start_s, span.end_s)
                for span in lanes[rank, "compute"]
                if kind_of(span.name) in PHASES
            )
            busy_s += sum(end - start for start, end in busy)
            hidden_s += sum(end - start for start, end in _overlap(busy, steps))
        if busy_s:
            found[lane] = {"busy_s": busy_s / len(ranks), "hidden_s": hidden_s / len(ranks)}
    return found


# -- what moved, how full, how fast ----------------------------------------------------------------


def _moved(instants: Iterable[Instant], steps: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Bytes counted and predicted; weights without those that stayed."""
    found = {kind: {"bytes": 0, "predicted_bytes": 0} for kind in (*COPIES, "weights")}
    for one in instants:
        if (kind := kind_of(one.name)) in COPIES:
            for name in found[kind]:
                found[kind][name] += one.args[name]
    for step in steps:
        for name, own in (("bytes", "weight_bytes"), ("predicted_bytes", "predicted_weight_bytes")):
            moved = step.get(own, {})
            found["weights"][name] += sum(moved.values()) - moved.get("resident", 0)
    return found if steps else None


def _mean_batch(steps: Sequence[dict[str, Any]]) -> float | None:
    batches = [step["decodes"] for step in steps if step["decodes"]]
    return sum(batches) / len(batches) if batches else None


def _tokens(steps: Sequence[dict[str, Any]]) -> dict[str, int] | None:
    if not steps:
        return None
    decoded = sum(step["decodes"] for step in steps)
    return {"prompt": sum(step["tokens"] for step in steps) - decoded, "decoded": decoded}


def _occupancy(trace: Trace) -> dict[str, float] | None:
    """Of the decode pool: (held + reserved) / (all - one largest request), a mean over the time in
    which requests wait in the tier; and over such time in decode phases alone."""
    pool = trace.about.get("decode_blocks")
    if not pool or not trace.about.get("tier_blocks"):
        return None
    values: dict[str, dict[str, float]] = {}
    events: list[Counted | Instant] = [*trace.counters, *trace.instants]
    events.sort(key=lambda one: one.at_s)
    sums: Sums = defaultdict(float)
    phase = ""
    for one, following in pairwise(events):
        if isinstance(one, Counted):
            values[one.name] = one.values
        elif kind_of(one.name) == "step":
            phase = one.args["phase"]
        seconds = following.at_s - one.at_s
        for name in [name for name in values if name.startswith("decode pool")]:
            which = name.removeprefix("decode pool")
            if not values.get(f"requests{which}", {}).get("stored"):
                continue
            room = pool - values.get(f"largest request{which}", {"blocks": 0})["blocks"]
            taken = values[name]["held"] + values[name]["reserved"]
            share = min(1.0, taken / room) if room > 0 else 1.0
            for which_s in ("", *([" in decode"] if phase == "decode" else [])):
                sums[f"seconds{which_s}"] += seconds
                sums[f"share{which_s}"] += share * seconds
    found: dict[str, float] = {"seconds": sums["seconds"]}
    for which_s, name in (("", "occupancy"), (" in decode", "occupancy_in_decode")):
        if sums[f"seconds{which_s}"] > 0:
            found[name] = sums[f"share{which_s}"] / sums[f"seconds{which_s}"]
    return found


def _predicted(
    instants: Iterable[Instant], steps: Sequence[dict[str, Any]]
) -> list[dict[str, Any]] | None:
    """Seconds measured and predicted of steps of alike size, copies, and changes of layout, those
    that differ most first; None where nothing was predicted."""
    groups: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def add(name: str, measured_s: float, predicted_s: float | None, times: int = 1) -> None:
        if predicted_s is not None:
            for at, value in enumerate((times, measured_s, predicted_s)):
                groups[name][at] += value

    for step in steps:
        if step["rows"]:
            is_prompt = step["tokens"] > step["decodes"]
            size, unit = (step["tokens"], "tokens") if is_prompt else (step["rows"], "rows")
            least = 1 << size.bit_length() - 1
            name = f"{step['phase']} steps of {least} to {2 * least - 1} {unit}"
            add(name, step["busy_s"], step.get("predicted_s"))
        change = f"transitions to {step['phase']}"
        if "predicted_reshard_s" in step:
            add(change, step["reshard_s"], step["predicted_reshard_s"])
        elif "reshard_s" in step and change in groups:
            add(change, step["reshard_s"], 0.0, times=0)  # weights that came while it ran
    for one in instants:
        if (kind := kind_of(one.name)) in COPIES:
            add(f"{kind}s of KV", one.args["seconds"], one.args.get("predicted_s"))
    found: list[dict[str, Any]] = [
        {"what": what, "count": int(count), "measured_s": measured_s, "predicted_s": predicted_s}
        for what, (count, measured_s, predicted_s) in groups.items()
    ]
    found.sort(key=lambda one: -abs(one["measured_s"] - one["predicted_s"]))
    return found or None


def _bound(time: Sums, steps: Sequence[dict[str, Any]], elapsed_s: float) -> list[dict[str, Any]]:
    """What took the ranks' time, the most first: seconds and share of the run. Steps are split by
    what the cost model says bounds them; without it prompts are taken for computing and answers
    for memory reads."""
    found: Sums = defaultdict(float)
    for phase, default in (("prefill", "computing"), ("decode", "memory reads")):
        terms: Sums = defaultdict(float)
        for step in steps:
            if step["phase"] == phase:
                for kind, seconds in step.get("bound_s", {}).items():
                    terms[kind] += seconds
        total_s = sum(terms.values())
        if not total_s:
            found[default] += time[phase]
        names = {"compute": "computing", "memory": "memory reads", "link": "the link between ranks",
                 "overhead": "launches and calls"}  # fmt: skip
        for kind, seconds in terms.items():
            found[names[kind]] += time[phase] * seconds / total_s
    found["host copies"] += time["transition"] + time["copies"]
    found["pipeline bubbles"] += time["bubbles"] + time["idle"]
    found["the driver"] += time["driver"]
    return [
        {"what": what, "seconds": seconds, "share": seconds / elapsed_s}
        for what, seconds in sorted(found.items(), key=lambda item: -item[1])
        if seconds > 0
    ]


# -- intervals, in order and apart -----------------------------------------------------------------


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _gaps(merged: Sequence[Interval], whole: Interval) -> list[Interval]:
    found, last_s = [], whole[0]
    for start, end in merged:
        if start > last_s:
            found.append((last_s, start))
        last_s = max(last_s, end)
    if whole[1] > last_s:
        found.append((last_s, whole[1]))
    return found


def _overlap(one: Sequence[Interval], other: Sequence[Interval]) -> list[Interval]:
    found, at = [], 0
    for start, end in one:
        while at < len(other) and other[at][1] <= start:
            at += 1
        index = at
        while index < len(other) and other[index][0] < end:
            found.append((max(start, other[index][0]), min(end, other[index][1])))
            index += 1
    return found
