"""`make gpu-check`: everything that needs an NVIDIA GPU, in stages, within minutes. Needs torch,
Triton, transformers, pytest and a C compiler; seesaw need not be installed.

usage: python scripts/gpu_check.py [--only tests,bench] [--minutes 8] [--output FILE]

A stage that fails or runs out of time stops no other one. What cannot run here is named. Figures go
to bench/results/<device>/<date>.json, where those of stages that did not run stay; the exit status
is 1 where a stage failed.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
NEEDED = ("torch", "triton", "transformers", "pytest", "click", "psutil")
OPTIONAL = {
    "seesaw._cpu": "the C++ kernels of CPUs",
    "cupy": "copies and sums in CUDA C++ (csrc/cuda)",
    "gguf": "GGUF models",
    "zmq": "several processes",
    "msgspec": "several processes",
    "hypothesis": "property tests",
    "flashinfer": "FlashInfer beside the kernels",
}
TESTS = (
    "tests/kernels",
    "tests/cuda",
    "tests/distributed/test_one_shot.py",
    "tests/measure/test_cuda_clock.py",
    "tests/engine/test_equivalence.py",
    "tests/engine/test_llm.py",
    "tests/engine/test_cuda_lanes.py",
    "tests/kvcache",
    "tests/weights/test_reshard.py",
    "tests/weights/test_arena.py",
    "tests/ops",
)
"""The most, and those of which others are made, last."""
IGNORED = "tests/kernels/test_aot.py"
"""Needs no GPU, and takes a while."""
MOST_WORKERS = 12
MINUTES = 7.9
"""Of all stages."""
WORKER_BYTES = 3 << 30
"""Of a GPU's memory: a context, kernels, and an engine."""
STUCK_S = 60
"""A test that takes longer tells where it is."""
GRACE_S = 10.0
"""A command that is told to end has so long to write what it knows."""
MOST_MESSAGE = 500
"""Characters of what a failed test says, in the file."""
FIRST = """
import torch, triton
assert torch.ones(8, device="cuda").sum().item() == 8
triton.runtime.driver.active.utils
"""
LAST_SHAPE_S = 40.0
"""Of a bench: what is begun takes that long at most, FlexAttention's compilation included."""
SANITIZED = "tests/kernels/test_interpreted.py"
SANITIZED_CASES = "-1-float16 or -3-float16"
"""By the ids of that test: small shapes, two of each op."""


@dataclass(slots=True)
class Outcome:
    """`status`: passed, failed, out of time, left out."""

    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def bad(self) -> bool:
        return self.status in ("failed", "out of time")


@dataclass(frozen=True, slots=True)
class Stage:
    """`run(folder, limit_s)` writes what it likes to `folder`. It gets at least `least_s` of
    MINUTES, whatever stages before it take, and at most `most_s`."""

    name: str
    least_s: float
    most_s: float
    run: Callable[[Path, float], Outcome]


def say(text: str) -> None:
    print(text, flush=True)


# -- stages ----------------------------------------------------------------------------------------


def command(arguments: Sequence[str], limit_s: float, **more: str) -> tuple[int | None, str]:
    """(exit status or None where time ran out, end of the output), the output shown meanwhile.
    `more`: of the environment."""
    own = {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0", "PYTHONUNBUFFERED": "1"}
    env = {**os.environ, **own, **more}
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=env, text=True, errors="replace", start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    stopped = threading.Event()

    def interrupt() -> None:
        stopped.set()
        process.send_signal(signal.SIGINT)

    grace_s = min(GRACE_S, limit_s / 4)
    timers = (
        threading.Timer(limit_s - grace_s, interrupt),
        threading.Timer(limit_s, os.killpg, (process.pid, signal.SIGKILL)),
    )
    for timer in timers:
        timer.start()
    lines: collections.deque[str] = collections.deque(maxlen=40)
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        say("    " + line.rstrip())
    status = process.wait()
    for timer in timers:
        timer.cancel()
    late = stopped.is_set() and status != 0
    return (None if late else status), "\n".join(lines)


def outcome(name: str, status: int | None, detail: str, **figures: Any) -> Outcome:
    told = {0: "passed", None: "out of time"}.get(status, "failed")
    return Outcome(name, told, detail=detail, figures=figures)


def tests(folder: Path, limit_s: float) -> Outcome:
    report = folder / "tests.xml"
    parallel = []
    if importlib.util.find_spec("xdist") is not None:  # compiling is most of the time
        parallel = ["-n", str(num_workers())]
    found = [path for path in TESTS if (ROOT / path).exists() and can_be_collected(ROOT / path)]
    arguments = [
        sys.executable, "-m", "pytest", "--device", "cuda", "--no-showlocals", "--tb=short",
        "-o", f"faulthandler_timeout={STUCK_S}",
    ]  # fmt: skip
    status, tail = command(
        [*arguments, *parallel, f"--ignore={IGNORED}", f"--junitxml={report}", *found], limit_s
    )
    if not report.exists():
        return outcome("tests", status, tail[-2000:])
    counts, why, failed = read_junit(report)
    if status is None:  # the report has the test that was interrupted among those that passed
        last = tail.rpartition("\n")[2]
        counts |= {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped)", last)}
    detail = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
    return outcome("tests", status, detail, counts=counts, skipped=why, failed=failed)


def num_workers() -> int:
    """Processes that share the GPU."""
    import torch

    fitting = torch.cuda.get_device_properties(0).total_memory // WORKER_BYTES
    return int(max(1, min(MOST_WORKERS, fitting, (os.cpu_count() or 1) - 1)))


def can_be_collected(path: Path) -> bool:
    """Folders leave out what they cannot import, as tests/conftest.py has it; a file that is named
    does not."""
    if path.is_dir() or importlib.util.find_spec("hypothesis") is not None:
        return True
    return "from hypothesis import" not in path.read_text(encoding="utf-8")


def read_junit(path: Path) -> tuple[dict[str, int], dict[str, int], dict[str, str]]:
    """(tests by outcome, skipped ones by reason, failed ones with what they say)."""
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    why: collections.Counter[str] = collections.Counter()
    failed: dict[str, str] = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        wrong = [child for child in case if child.tag in ("failure", "error")]
        if wrong:
            counts["failed"] += 1
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            failed[name] = wrong[0].get("message", "")[:MOST_MESSAGE]
        elif (skipped := case.find("skipped")) is not None:
            counts["skipped"] += 1
            why[skipped.get("message", "")] += 1
        else:
            counts["passed"] += 1
    return counts, dict(why.most_common()), failed


def sanitizer(folder: Path, limit_s: float) -> Outcome:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return Outcome("sanitizer", "left out", detail="compute-sanitizer is not on PATH")
    pytest = [sys.executable, "-m", "pytest", "--device", "cuda", SANITIZED, "-k", SANITIZED_CASES]
    memcheck = [tool, "--tool", "memcheck", "--error-exitcode", "9", "--target-processes", "all"]
    # A piece of memory for each tensor: beyond the end of one there is nothing, not another one.
    status, tail = command([*memcheck, *pytest], limit_s, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if "Device not supported" in tail:
        return Outcome("sanitizer", "left out", detail="compute-sanitizer refuses this device")
    return outcome("sanitizer", status, tail.strip().splitlines()[-1] if tail.strip() else "")


def bench(folder: Path, limit_s: float) -> Outcome:
    within = str(max(1.0, limit_s - LAST_SHAPE_S))
    return figures_of("bench", folder, limit_s, "-m", "seesaw", "bench", "kernels",
                      "--device", "cuda", "--within", within, "--output-json")  # fmt: skip


def engine(folder: Path, limit_s: float) -> Outcome:
    return figures_of("engine", folder, limit_s, "scripts/gpu_engine.py", "--output")


def bus(folder: Path, limit_s: float) -> Outcome:
    return figures_of("bus", folder, limit_s, "scripts/gpu_bus.py", "--output")


def figures_of(name: str, folder: Path, limit_s: float, *arguments: str) -> Outcome:
    """Of a program that writes its figures as JSON to the file named last."""
    target = folder / f"{name}.json"
    status, tail = command([sys.executable, *arguments, str(target)], limit_s)
    figures = json.loads(target.read_text()) if target.exists() else {}
    goals = figures.get("goals", [])
    detail = f"{sum(goal['met'] for goal in goals)} of {len(goals)} goals met" if goals else ""
    return outcome(name, status, detail if status == 0 else tail[-2000:], **figures)


STAGES = (
    Stage("tests", 160, 240, tests),
    Stage("bench", 100, 180, bench),
    Stage("bus", 30, 40, bus),
    Stage("engine", 110, 180, engine),
    Stage("sanitizer", 70, 120, sanitizer),
)


# -- all of it -------------------------------------------------------------------------------------


def refuse() -> str | None:
    """Why nothing can run here."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"{sys.executable} lacks {', '.join(missing)}: pip install {' '.join(missing)}, or "
            "name another one, such as make gpu-check PYTHON=.venv/bin/python"
        )
    import torch

    if not torch.cuda.is_available():
        return (
            "torch sees no CUDA device. This check is for a machine with an NVIDIA GPU of sm_80 or "
            "newer; `make check` is for all others."
        )
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < (8, 0):
        return f"{torch.cuda.get_device_name()} is sm_{major}{minor}; sm_80 or newer is needed."
    return why_not_at_all()


def why_not_at_all() -> str | None:
    """What would fail every stage: torch that has no kernels for this GPU, or Triton without a C
    compiler or Python's headers, with which it builds its launcher."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST], capture_output=True, text=True, errors="replace"
    )
    if done.returncode == 0:
        return None
    said = "\n".join(done.stderr.strip().splitlines()[-12:])
    return f"nothing can run on this GPU here:\n{said}\nTriton wants gcc or clang, and Python.h."


def left_out() -> dict[str, str]:
    """Packages that are not here, and what goes without them."""
    sys.path.insert(0, str(ROOT))
    return {name: what for name, what in OPTIONAL.items() if importlib.util.find_spec(name) is None}


def table(outcomes: Sequence[Outcome]) -> list[str]:
    lines = [f"{'stage':<10} {'status':<12} {'seconds':>7}  detail"]
    for one in outcomes:
        detail = one.detail.strip().splitlines()[-1] if one.detail.strip() else ""
        lines.append(f"{one.name:<10} {one.status:<12} {one.seconds:7.0f}  {detail[:100]}")
    for one in outcomes:
        for goal in one.figures.get("goals", []):
            what = (
                goal["what"]
                if "op" not in goal
                else f"{goal['op']}, {goal['case']}, {goal['what']}"
            )
            bound = (
                f"at most {goal['most']:.2f}" if "most" in goal else f"at least {goal['least']:.2f}"
            )
            mark = "met   " if goal["met"] else "MISSED"
            lines.append(f"  {mark} {goal['value']:6.2f} {bound}  {what}")
    return lines


def target_file(device: str) -> Path:
    slug = re.sub(r"[^A-Za-z0-9.]+", "_", device).strip("_")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return RESULTS / slug / f"{today}.json"


def earlier(target: Path, done: set[str]) -> list[Any]:
    """Stages that another run has written there, but for those that are `done` now."""
    if not target.exists():
        return []
    stages = json.loads(target.read_text(encoding="utf-8"))["stages"]
    return [stage for stage in stages if stage["name"] not in done]


def run(stages: Sequence[Stage], minutes: float) -> list[Outcome]:
    end_s = time.monotonic() + 60 * minutes
    outcomes = []
    for number, stage in enumerate(stages, 1):
        reserved_s = sum(later.least_s for later in stages[number:]) * minutes / MINUTES
        limit_s = min(stage.most_s, end_s - time.monotonic() - reserved_s)
        if limit_s <= 5:
            outcomes.append(Outcome(stage.name, "out of time", detail="no time was left for it"))
            continue
        say(f"[{number}/{len(stages)}] {stage.name}, at most {limit_s:.0f} s")
        start_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="seesaw-gpu-check-") as folder:
            try:
                found = stage.run(Path(folder), limit_s)
            except Exception as error:
                found = Outcome(stage.name, "failed", detail=f"{type(error).__name__}: {error}")
        found.seconds = time.monotonic() - start_s
        outcomes.append(found)
        say(f"    {found.status} after {found.seconds:.0f} s {found.detail[-200:]}")
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument("--only", default=",".join(names), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="default: bench/results/<device>/<date>.json")
    asked = parser.parse_args()
    chosen = [name.strip() for name in asked.only.split(",")]
    for name in chosen:
        if name not in names:
            parser.error(f"--only: got {name!r}, expected some of {', '.join(names)}")
    if (why := refuse()) is not None:
        print(f"gpu-check: {why}", file=sys.stderr)
        return 2
    import torch

    absent = left_out()
    from seesaw.api.environment import environment

    device = torch.cuda.get_device_name()
    say(f"{device}, torch {torch.__version__}")
    for name, what in absent.items():
        say(f"not here: {name}; left out: {what}")
    outcomes = run([stage for stage in STAGES if stage.name in chosen], asked.minutes)
    target = asked.output or target_file(device)
    target.parent.mkdir(parents=True, exist_ok=True)
    stages = [asdict(one) for one in outcomes]
    content = {
        "device": device,
        "environment": environment(),
        "not_here": absent,
        "stages": earlier(target, {one.name for one in outcomes}) + stages,
    }
    target.write_text(json.dumps(content, indent=1) + "\n")
    print("\n".join(table(outcomes)))
    print(f"wrote {target}")
    return int(any(one.bad for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
