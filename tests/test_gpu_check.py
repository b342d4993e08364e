"""`make gpu-check` without a GPU: what it refuses, how its stages end, what it reads and writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import seesaw
from tests.scripts_import import load_script

ROOT = Path(seesaw.__file__).parent.parent
JUNIT = """<testsuites><testsuite>
<testcase name="a"/><testcase name="b"><skipped message="no zmq"/></testcase>
<testcase classname="t.x" name="c"><failure message="assert 1 == 2"/></testcase>
<testcase name="d"><error/></testcase>
<testcase name="e"><skipped message="no zmq"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def check() -> ModuleType:
    return load_script("gpu_check")


def test_without_a_gpu_it_refuses_and_says_what_is_for_here() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "scripts/gpu_check.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "make check" in done.stderr
    assert done.stdout == ""


def test_a_stage_that_is_not_known_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/gpu_check.py", "--only", "test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "expected some of tests, bench" in done.stderr


def test_files_that_it_runs_are_there(check: ModuleType) -> None:
    for path in (*check.TESTS, check.SANITIZED, "scripts/gpu_engine.py", "scripts/gpu_bus.py"):
        assert (ROOT / path).exists(), path


def test_a_command_is_shown_and_ended_in_time(
    check: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    status, tail = check.command([sys.executable, "-c", "print('said'); exit(3)"], 60)
    assert (status, tail) == (3, "said")
    assert "said" in capsys.readouterr().out
    sleeps = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    hangs = f"import subprocess, sys; subprocess.run({sleeps})"
    status, _ = check.command([sys.executable, "-c", hangs], 0.5)
    assert status is None


def test_a_command_that_is_out_of_time_may_write_what_it_knows(check: ModuleType) -> None:
    program = (
        "import time\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('interrupted'); raise SystemExit(2)"
    )
    status, tail = check.command([sys.executable, "-c", program], 4)
    assert (status, tail) == (None, "interrupted")
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    assert check.command([sys.executable, "-c", deaf], 2)[0] is None


def test_tests_that_are_out_of_time_tell_what_they_found(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "test_own.py"
    own.write_text(
        "import time\n"
        "def test_passes(): pass\n"
        "def test_fails(): assert 1 == 2\n"
        "def test_hangs(): time.sleep(60)\n"
    )
    options = "def pytest_addoption(parser): parser.addoption('--device')"
    (tmp_path / "conftest.py").write_text(options)
    monkeypatch.setattr(check, "TESTS", (str(own),))
    monkeypatch.setattr(check, "num_workers", lambda: 1)
    found = check.tests(tmp_path, 16)
    assert found.status == "out of time"
    assert found.figures["counts"]["passed"] == 1
    ((name, said),) = found.figures["failed"].items()
    assert name.endswith("::test_fails")
    assert "assert 1 == 2" in said


def test_the_sanitizer_sees_where_tensors_end(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's allocator puts tensors side by side, where an access out of bounds finds another."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho alone=$PYTORCH_NO_CUDA_MEMORY_CACHING\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = check.sanitizer(tmp_path, 30)
    assert (found.status, found.detail) == ("passed", "alone=1")


def test_outcomes(check: ModuleType) -> None:
    assert check.outcome("x", 0, "").status == "passed"
    assert check.outcome("x", 1, "").bad
    assert check.outcome("x", None, "").status == "out of time"
    assert not check.Outcome("x", "left out").bad


def stage(check: ModuleType, name: str, run: Callable[..., object]) -> object:
    return check.Stage(name, 1.0, 60.0, run)


def test_a_stage_that_fails_stops_no_other(check: ModuleType) -> None:
    def broken(folder: Path, limit_s: float) -> object:
        raise RuntimeError("planted")

    def fine(folder: Path, limit_s: float) -> object:
        assert folder.is_dir()
        assert 0 < limit_s <= 60
        return check.outcome("b", 0, "")

    found = check.run([stage(check, "a", broken), stage(check, "b", fine)], minutes=1.0)
    assert [(one.name, one.status) for one in found] == [("a", "failed"), ("b", "passed")]
    assert "planted" in found[0].detail
    (late,) = check.run([stage(check, "b", fine)], minutes=0.01)
    assert late.status == "out of time"


def test_a_stage_leaves_time_for_those_behind_it(check: ModuleType) -> None:
    limits = {}

    def note(name: str) -> Callable[[Path, float], object]:
        def run(folder: Path, limit_s: float) -> object:
            limits[name] = limit_s
            return check.outcome(name, 0, "")

        return run

    stages = [replace(one, run=note(one.name)) for one in check.STAGES]
    assert sum(one.least_s for one in stages) <= 60 * check.MINUTES
    found = check.run(stages, check.MINUTES)
    assert not any(one.bad for one in found)
    first, last = stages[0], stages[-1]
    assert first.least_s <= limits[first.name] < first.most_s, "the others need the rest"
    assert limits[last.name] == last.most_s, "nobody has taken any"
    limits.clear()
    check.run(stages, check.MINUTES / 2)
    assert all(limits[one.name] >= one.least_s / 2 - 1 for one in stages)


def test_another_run_of_the_day_replaces_its_own_stages_alone(
    check: ModuleType, tmp_path: Path
) -> None:
    target = tmp_path / "day.json"
    assert check.earlier(target, set()) == []
    target.write_text(json.dumps({"stages": [{"name": "tests"}, {"name": "bench"}]}))
    assert check.earlier(target, {"bench"}) == [{"name": "tests"}]


def test_a_gpu_on_which_nothing_runs_is_told_at_once(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "FIRST", "raise RuntimeError('Failed to find C compiler')")
    why = check.why_not_at_all()
    assert "Failed to find C compiler" in why
    assert "Python.h" in why
    monkeypatch.setattr(check, "FIRST", "pass")
    assert check.why_not_at_all() is None


def test_figures_and_goals_reach_the_table(check: ModuleType, tmp_path: Path) -> None:
    goals = [
        {"what": "a step", "value": 1.3, "most": 1.25, "met": False},
        {"op": "rms_norm", "case": "x", "what": "of the limit", "value": 0.9, "least": 0.85,
         "met": True},
    ]  # fmt: skip
    program = (
        f"import sys; open(sys.argv[-1], 'w').write({json.dumps(json.dumps({'goals': goals}))})"
    )
    found = check.figures_of("engine", tmp_path, 60, "-c", program)
    assert (found.status, found.detail) == ("passed", "1 of 2 goals met")
    lines = check.table([found])
    assert any("MISSED" in line and "at most 1.25" in line for line in lines)
    assert any("met " in line and "rms_norm, x, of the limit" in line for line in lines)
    failed = check.figures_of("engine", tmp_path / "no", 60, "-c", "raise SystemExit('planted')")
    assert failed.status == "failed"
    assert "planted" in failed.detail


def test_reasons_for_skipping_and_failures_are_read(check: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(JUNIT)
    counts, why, failed = check.read_junit(path)
    assert counts == {"passed": 1, "failed": 2, "skipped": 2}
    assert why == {"no zmq": 2}
    assert failed == {"t.x::c": "assert 1 == 2", "::d": ""}


def test_results_lie_by_device_and_date(check: ModuleType) -> None:
    path = check.target_file("NVIDIA H100 80GB HBM3")
    assert path.parent == ROOT / "bench" / "results" / "NVIDIA_H100_80GB_HBM3"
    assert path.suffix == ".json"


# -- the engine's figures --------------------------------------------------------------------------


def test_steps_count_once_where_they_overlap(tiny_checkpoint: Callable[..., Path]) -> None:
    engine = load_script("gpu_engine")
    engine.VOCAB = 100
    settings = {"dtype": "float32", "device": "cpu", "device_memory": "256MiB"}
    with seesaw.LLM(str(tiny_checkpoint("llama")), **settings) as llm:
        elapsed_s, steps = engine.run(llm, 3, 8, 6)
    decode = steps.decode(3)
    assert 1 <= len(decode) <= 5
    assert sum(seconds for seconds, _ in decode) < elapsed_s
    assert all(num_bytes > 0 for _, num_bytes in decode)
    assert steps.decode(2) == []


def test_goals_of_the_engine() -> None:
    engine = load_script("gpu_engine")
    assert engine.goal("x", 1.2, 1.25, most=True)["met"]
    assert not engine.goal("x", 1.3, 1.25, most=True)["met"]
    assert not engine.goal("x", 0.5, 0.55, most=False)["met"]


def test_the_model_lies_in_memory_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks may take longer to write 16 GB than all that is measured; /dev/shm may be 64 MB."""
    engine = load_script("gpu_engine")
    for free, folder in ((64 << 20, None), (16 << 30, "/dev/shm")):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(engine.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert engine.fastest_folder() == folder
