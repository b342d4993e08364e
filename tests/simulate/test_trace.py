"""The trace is what a viewer reads, and spreads are what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seesaw.simulate.results import Part
from seesaw.simulate.simulation import simulate
from seesaw.trace import Span, Spans, write_trace
from tests.simulate.scenarios import make_scenario


def test_a_trace_has_a_process_for_each_rank_and_a_thread_for_each_lane(tmp_path: Path) -> None:
    spans = Spans()
    result = simulate(
        make_scenario(
            [(0.0, 8, 3)] * 3, "pp2 -> tp2", transition_s=0.5, host_kv_memory="1MiB",
        ),
        spans,
    )  # fmt: skip
    path = tmp_path / "trace.json"
    write_trace(path, spans.spans, ["one", "other"])
    assert list(tmp_path.iterdir()) == [path]
    events = json.loads(path.read_text())
    named = {e["pid"]: e["args"] for e in events if e["name"] == "process_name"}
    assert list(named.values()) == [{"name": "rank 0: one"}, {"name": "rank 1: other"}]
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"
    }
    assert all((pid, 3) in threads and threads[pid, 3] == "load" for pid in named)
    bars = [e for e in events if e["ph"] == "X"]
    assert len(bars) == len(spans.spans)
    assert {threads[e["pid"], e["tid"]] for e in bars} >= {"compute"}
    assert {e["cat"] for e in bars} == {"prefill", "decode", "to decode"}
    for bar, span in zip(bars, spans.spans, strict=True):
        assert (bar["ts"], bar["dur"]) == pytest.approx(
            (1e6 * span.start_s, 1e6 * (span.end_s - span.start_s))
        )
    assert max(span.end_s for span in spans.spans) == result.elapsed_s


def test_a_trace_of_nothing_is_valid(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", [], [])
    assert json.loads((tmp_path / "t.json").read_text()) == []
    write_trace(tmp_path / "t.json", [Span(0, "store", "store 1", 0.0, 1.0)], [])
    assert len(json.loads((tmp_path / "t.json").read_text())) == 1


def test_a_part_without_any_time_has_no_rate() -> None:
    part = Part(seconds=0.0, input_tokens=0, output_tokens=0)
    assert part.to_json()["tokens_per_s"] == part.to_json()["output_tokens_per_s"] == 0.0
