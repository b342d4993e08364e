"""A trace file is read back as written, cut off anywhere or not; anything else is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from seesaw.errors import ConfigError
from seesaw.trace import DRIVER, LANES, Span, TraceWriter, kind_of, read_trace


def write_some(path: Path, rng: random.Random) -> list[Span]:
    spans = []
    with TraceWriter(path, origin_s=100.0) as writer:
        writer.about(model="m", num_ranks=2)
        for rank in (DRIVER, 0, 1):
            writer.process(rank, f"label {rank}")
        for number in range(50):
            rank = rng.choice([DRIVER, 0, 1])
            lane = "driver" if rank == DRIVER else rng.choice(LANES[:-1])
            start_s = 100.0 + rng.random()
            span = Span(rank, lane, f"decode {number}", start_s, start_s + rng.random())
            writer.span(*span, rows=number)
            spans.append(span)
            writer.counter("tier", start_s, held=number)
            writer.instant(f"step {number}", start_s, phase="decode")
    return spans


def test_a_file_is_read_back(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    spans = write_some(tmp_path / "t.json", random.Random(seed))
    assert isinstance(json.loads((tmp_path / "t.json").read_text()), list)
    found = read_trace(tmp_path / "t.json")
    assert found.is_whole
    assert found.about == {"model": "m", "num_ranks": 2}
    assert found.labels == {-1: "driver: label -1", 0: "rank 0: label 0", 1: "rank 1: label 1"}
    assert len(found.counters) == len(found.instants) == 50
    expected = sorted(spans, key=lambda span: span.start_s)
    for span, args, one in zip(found.spans, found.span_args, expected, strict=True):
        assert span[:3] == one[:3]
        assert span[3:] == pytest.approx((one.start_s - 100.0, one.end_s - 100.0), abs=1e-8)
        assert args == {"rows": int(one.name.split()[1])}


def test_a_file_that_was_cut_off_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    write_some(tmp_path / "t.json", rng)
    whole = (tmp_path / "t.json").read_bytes()
    torn = tmp_path / "torn.json"
    for size in [3, len(whole) - 3, *(rng.randrange(3, len(whole) - 3) for _ in range(60))]:
        torn.write_bytes(whole[:size])
        found = read_trace(torn)
        assert not found.is_whole
        num_events = whole[:size].count(b'"ph": "X"')
        assert num_events - 1 <= len(found.spans) <= num_events


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", '{"traceEvents": []}', "[\nhello\n]\n", '[\n{"ph": "X"},\n{}\n]\n',
        "\ufffd\x00", "[]", '[\n{"name": "a", "ph": "Q", "pid": 1, "ts": 0},\n]',
    ],
)  # fmt: skip
def test_what_is_no_trace_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigError, match=r"t\.json: is no trace of seesaw .* --trace"):
        read_trace(tmp_path / "t.json")


def test_an_absent_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json: No such file"):
        read_trace(tmp_path / "absent.json")
    (tmp_path / "b.json").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ConfigError, match="no trace of seesaw"):
        read_trace(tmp_path / "b.json")


def test_a_full_disk_ends_the_trace_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    writer = TraceWriter("/dev/full")
    for number in range(10_000):
        writer.span(0, "compute", f"decode {number}", 0.0, 1.0)
    writer.close()
    writer.span(0, "compute", "decode 1", 0.0, 1.0)
    assert capsys.readouterr().err.count("Nothing more is traced.") == 1


def test_kinds_are_names_without_numbers() -> None:
    names = ("decode 17", "to decode", "texts", "load of 3x", "7")
    assert [*map(kind_of, names)] == ["decode", "to decode", "texts", "load of 3x", "7"]
