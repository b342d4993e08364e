"""`seesaw report`: figures of a trace that was made by hand are those computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seesaw.api.run_figures import joint_steps, run_figures
from seesaw.trace import DRIVER, Span, TraceWriter, read_trace, write_trace
from tests.api.command import run

ABOUT = {
    "model": "some/model.gguf", "prefill_layout": "pp2", "decode_layout": "tp2",
    "num_replicas": 1, "num_ranks": 2, "decode_blocks": 100, "prefill_blocks": 10,
    "tier_blocks": 20, "predicted_by": "a test", "not_predicted": None,
}  # fmt: skip


def step(number: int, phase: str, rows: int, tokens: int, decodes: int, busy_s: float,
         predicted_s: float, **more: object) -> dict[str, object]:  # fmt: skip
    bound = {"compute": 3.0, "memory": 1.0} if phase == "prefill" else {"memory": 4.0, "link": 1.0}
    return {"phase": phase, "rows": rows, "tokens": tokens, "decodes": decodes, "busy_s": busy_s,
            "predicted_s": predicted_s, "bound_s": bound, **more}  # fmt: skip


def write(path: Path) -> None:
    """Two ranks, ten seconds: a prefill phase of two steps, a transition, two decode steps."""
    with TraceWriter(path) as writer:
        writer.about(**ABOUT)
        spans = [
            Span(0, "compute", "prefill 0", 0.0, 1.0), Span(0, "compute", "prefill 1", 1.0, 2.0),
            Span(1, "compute", "wait 0", 0.0, 1.0), Span(1, "compute", "prefill 0", 1.0, 2.0),
            Span(1, "compute", "prefill 1", 2.0, 3.0),
            Span(0, "store", "store 0", 1.0, 1.5), Span(1, "store", "store 0", 2.0, 3.5),
            Span(0, "compute", "to decode", 2.0, 2.5), Span(1, "compute", "to decode", 3.0, 3.8),
            Span(0, "load", "load 1", 4.5, 6.5), Span(DRIVER, "driver", "plan 3", 6.0, 6.25),
            Span(0, "compute", "decode 2", 4.0, 6.0), Span(1, "compute", "decode 2", 4.0, 6.0),
            Span(0, "compute", "decode 3", 7.0, 10.0), Span(1, "compute", "decode 3", 6.0, 10.0),
        ]  # fmt: skip
        for span in spans:
            writer.span(*span)
        for number, one in enumerate((
            step(0, "prefill", 2, 64, 0, 1.0, 0.5), step(1, "prefill", 1, 64, 0, 1.0, 1.0),
            step(2, "decode", 4, 4, 4, 2.0, 1.75, reshard_s=0.8, predicted_reshard_s=0.5,
                 weight_bytes={"host": 700, "resident": 5},
                 predicted_weight_bytes={"host": 600, "copy": 200, "resident": 9}),
            step(3, "decode", 6, 6, 6, 4.0, 4.0),
        )):  # fmt: skip
            writer.instant(f"step {number}", 1.0 + 3 * number, **one)
        writer.instant("store 0", 3.5, bytes=40, predicted_bytes=40, seconds=1.5, predicted_s=1.0)
        writer.instant("load 1", 6.5, bytes=30, predicted_bytes=50, seconds=2.0, predicted_s=0.1)
        writer.instant("abort", 9.0, request="a")
        writer.counter("largest request", 0.0, blocks=20)
        writer.counter("decode pool", 0.0, held=0, reserved=0)
        writer.counter("requests", 2.0, stored=1)
        writer.counter("decode pool", 4.0, held=40, reserved=20)  # 60 of 80
        writer.counter("requests", 5.0, stored=0)
        writer.counter("tier", 2.0, held=20)
        writer.counter("tier", 5.0, held=0)
        writer.counter("tokens/s", 5.0, prompt=10.0, output=3.0)
        writer.counter("tokens/s", 9.0, prompt=0.0, output=3.0)


def test_figures_are_those_computed_by_hand(tmp_path: Path) -> None:
    write(tmp_path / "t.json")
    found = run_figures(read_trace(tmp_path / "t.json"))
    assert found["elapsed_s"] == 10.0
    assert found["num_transitions"] == 1
    # Rank 0 is done at 2.0, rank 1 at 3.0: until then it is a bubble. Both decode from 4.0 on.
    assert found["transition_visible_s"] == pytest.approx(1.0)
    time = found["time_s"]
    assert time["prefill"] == pytest.approx(2.0)
    # Rank 1 waits for rank 0 from 6.0 to 7.0, in the step that both compute.
    assert time["decode"] == pytest.approx(5.0)
    assert time["bubbles"] == pytest.approx((1.0 + 1.0 + 1.0) / 2)
    # Rank 0 rests from 6.0 to 7.0: the driver until 6.25, its load until 6.5.
    assert time["driver"] == pytest.approx(0.25 / 2)
    assert time["copies"] == pytest.approx(0.25 / 2)
    assert time["idle"] == pytest.approx(0.5 / 2)
    assert sum(time.values()) == pytest.approx(found["elapsed_s"])
    assert found["phase_s"] == pytest.approx({"prefill": (3.0 + 2.0) / 2, "decode": 6.0})
    assert found["stall_s"] == pytest.approx({"to decode": 0.65, "wait": 0.5, "sync": 0.5})
    assert found["streams"]["store"] == pytest.approx({"busy_s": 1.0, "hidden_s": 0.75})
    assert found["streams"]["load"] == pytest.approx({"busy_s": 1.0, "hidden_s": 0.75})
    assert found["moved"] == {
        "store": {"bytes": 40, "predicted_bytes": 40},
        "load": {"bytes": 30, "predicted_bytes": 50},
        "relay": {"bytes": 0, "predicted_bytes": 0},
        "weights": {"bytes": 700, "predicted_bytes": 800},
    }
    assert found["decode_pool"] == pytest.approx(
        {"seconds": 3.0, "occupancy": (2 * 0 + 1 * 0.75) / 3}
    )
    assert found["mean_decode_batch"] == 5.0
    assert found["tokens"] == {"prompt": 128, "decoded": 10}
    assert found["num_aborts"] == 1
    assert found["predicted"][0]["what"] == "loads of KV"
    assert {one["what"]: one["measured_s"] - one["predicted_s"] for one in found["predicted"]} == (
        pytest.approx({
            "loads of KV": 1.9, "prefill steps of 64 to 127 tokens": 0.5, "stores of KV": 0.5,
            "transitions to decode": 0.3, "decode steps of 4 to 7 rows": 0.25,
        })
    )  # fmt: skip
    assert {one["what"]: one["seconds"] for one in found["bound"]} == pytest.approx({
        "computing": 1.5, "memory reads": 0.5 + 0.8 * 5.0, "the link between ranks": 0.2 * 5.0,
        "host copies": 1.125, "pipeline bubbles": 1.75, "the driver": 0.125,
    })  # fmt: skip
    assert found["bound"][0]["what"] == "memory reads"


def test_the_command_writes_a_picture_a_text_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    write(tmp_path / "t.json")
    figures, folder = tmp_path / "f.json", tmp_path / "new" / "report"
    command = ["report", str(tmp_path / "t.json"), "-o", str(folder)]
    assert run([*command, "--output-json", str(figures)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "Bound by memory reads: 4.50 s of 10.00 s (45%); then pipeline bubbles 18%"
    )
    assert "transitions: 1, visible 1.000 s" in said
    assert "KV loaded 30 B, predicted 50 B" in said
    assert "decode pool 25.0% full while requests wait in the tier" in said
    assert (folder / "report.txt").read_text() in said
    assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(figures.read_text()) == run_figures(read_trace(tmp_path / "t.json"))


def test_a_simulators_trace_is_reported_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    spans = [
        Span(0, "compute", "prefill 0", 0.0, 2.0), Span(0, "store", "store 0", 2.0, 3.0),
        Span(0, "compute", "to decode", 2.0, 2.5), Span(0, "compute", "decode 1", 3.0, 4.0),
    ]  # fmt: skip
    write_trace(tmp_path / "t.json", spans, ["a device"], simulated=True)
    assert run(["report", str(tmp_path / "t.json"), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Bound by computing: 2.00 s of 4.00 s (50%)")
    assert "bytes: not in this trace" in said
    assert "predicted seconds: none (not in this trace)" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}\n", "is no trace of seesaw"), ("[\n]\n", "has no steps"), (None, "No such file")],
)
def test_what_cannot_be_reported_is_refused(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.json"
    if text is not None:
        path.write_text(text)
    assert run(["report", str(path), "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_step_of_two_ranks_begins_when_both_have_come_to_it(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.json") as writer:
        writer.about(**ABOUT)
        for span in (
            Span(0, "compute", "prefill 0", 0.0, 1.0), Span(1, "compute", "prefill 0", 1.0, 3.0),
            Span(0, "compute", "decode 1", 2.0, 6.0), Span(1, "compute", "decode 1", 4.0, 6.0),
        ):  # fmt: skip
            writer.span(*span)
    trace = read_trace(tmp_path / "t.json")
    assert [span for span in joint_steps(trace) if span.rank == 0] == [
        Span(0, "compute", "prefill 0", 0.0, 1.0),
        Span(0, "compute", "sync 1", 2.0, 4.0),
        Span(0, "compute", "decode 1", 4.0, 6.0),
    ]
    time = run_figures(trace)["time_s"]
    assert time["decode"] == pytest.approx(2.0)
    # Rank 1 is done with prompts at 3.0: until then rank 0 has a bubble, from there a transition.
    assert time["transition"] == pytest.approx(1.0)
    assert time["bubbles"] == pytest.approx((2.0 + 0.0) / 2)
    assert time["idle"] == pytest.approx((0.0 + 1.0) / 2)
    assert sum(time.values()) == pytest.approx(6.0)
