"""bench/against_peers.py with systems that only wait: turns, figures, what it says of failures."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import against_peers
from bench.against_peers import Workload

FAKE = """
import argparse, json, time
from workload import make_parser, measure_all

p = make_parser(__doc__)
p.add_argument("--wait", type=float, default=0.0)
p.add_argument("--bind")
a = p.parse_args()
print("a library that prints", flush=True)

def run(batch, output_len):
    with open(a.model, "a") as file:
        file.write(json.dumps([a.wait, a.bind, [len(ids) for ids in batch], output_len]) + "\\n")
    if output_len == 13:
        raise SystemExit("out of luck")
    time.sleep(a.wait)

measure_all("fake", a, 0.0, 11, run)
"""


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[object]]]:
    """Runs the script in this process; what the systems were asked for, in order."""
    pytest.importorskip("seesaw._cpu")
    peers = tmp_path / "peers"
    peers.mkdir()
    shutil.copy(against_peers.PEERS / "workload.py", peers)
    for name in ("fake", "vllm"):
        (peers / f"bench_{name}.py").write_text(FAKE)
    monkeypatch.setattr(against_peers, "PEERS", peers)
    log = tmp_path / "calls"

    def run(*arguments: str) -> list[list[object]]:
        command = ["against_peers", "--model", str(log), "--logs", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        against_peers.main()
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run


def test_systems_take_turns(
    compare: Callable[..., list[list[object]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "figures.json"
    calls = compare(
        "--system", "fake --wait 0.02", "--system", "vllm --wait 0.2", "--workload", "6x3:2",
        "--workload", "2x5:1", "--rounds", "2", "--output-json", str(target),
    )  # fmt: skip
    ours, theirs = [0.02, None], [0.2, "0-1"]
    expected = []
    for count, length, output in ((6, 3, 2), (2, 5, 1)):
        for prompts in (min(4, count), count, count):  # a warm-up, then two rounds
            expected += [[*ours, [length] * prompts, output], [*theirs, [length] * prompts, output]]
    assert calls == expected
    first, second = json.loads(target.read_text())
    assert second["workload"] == {"num_prompts": 2, "input_len": 5, "output_len": 1}
    assert len(first["rounds"]) == 2
    assert first["rounds"][0]["limits"]["read_bytes_per_s"] > 0
    figures = first["systems"]["vllm --wait 0.2"]
    ratios = [one["seconds"][1] / one["seconds"][0] for one in first["rounds"]]
    assert figures["ratio"] == pytest.approx(sum(ratios) / 2)
    assert figures["ratio_range"] == [min(ratios), max(ratios)]
    assert figures["median_s"] >= 0.2
    assert "times the first" in capsys.readouterr().out


def test_a_system_that_fails_is_quoted(compare: Callable[..., list[list[object]]]) -> None:
    with pytest.raises(SystemExit, match="out of luck"):
        compare("--system", "fake", "--workload", "1x1:13")


def test_unknown_systems_and_odd_workloads_are_refused(
    compare: Callable[..., list[list[object]]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="expected one of fake, vllm"):
        compare("--system", "trasformers")
    with pytest.raises(SystemExit):
        compare("--system", "fake", "--workload", "64x256")
    assert "expected PROMPTSxINPUT:OUTPUT" in capsys.readouterr().err


def test_a_workload_reads_as_it_is_written() -> None:
    assert str(Workload.parse("64x256:32")) == "64 x (256 in, 32 out)"
