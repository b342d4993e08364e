"""Runs jobs with the fake engine and kills them over and over: `killed_jobs.py FOLDER KILLS SEED`.

Each run is a forked child that ends by SIGKILL, either after a random time or, for the moments
that are over in microseconds, by its own hand at a random pass of a random point. Prints one line
of JSON: how many kills hit each phase. Asserts after every kill that no row was lost, doubled or
altered. No torch, so that a thousand kills take seconds.
"""

from __future__ import annotations

import collections
import functools
import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seesaw.batch import job as job_module
from seesaw.batch import journal, scan, writer
from tests.batch.fake_engine import FakeEncoder, FakeEngine
from tests.batch.fake_job import run_job

PHASES = (
    "lock",
    "load",
    "scan",
    "encode",
    "step",
    "commit",
    "append",
    "rename",
    "write",
    "summary",
)
NUM_ROWS = 60
CODE_BUG = 99


class Quiet:
    def message(self, text: str) -> None:
        pass

    def progress(self, now: object) -> None:
        pass


class Instruments:
    """Marks the phases that a child is in, and kills it at the chosen pass of one of them."""

    def __init__(self, active: mmap.mmap, phase: str | None, passes: int, where: float):
        self._active = active
        self._phase = phase
        self._passes = passes
        self._where = where  # below 0.5 before the point, else after it

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def outer(*args: Any, **kwargs: Any) -> Any:
            place = PHASES.index(phase)
            self._active[place] += 1
            mine = phase == self._phase
            self._passes -= mine
            if mine and self._passes == 0 and self._where < 0.5:
                os.kill(os.getpid(), signal.SIGKILL)
            result = inner(*args, **kwargs)
            if mine and self._passes == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._active[place] -= 1
            return result

        setattr(owner, name, outer)

    def install(self) -> None:
        for owner, name, phase in (
            (job_module.JobLock, "__enter__", "lock"),
            (FakeEngine, "__init__", "load"),
            (journal.Journal, "insert", "scan"),
            (scan.Scan, "_meet", "scan"),
            (FakeEncoder, "encode_chat", "encode"),
            (FakeEngine, "step", "step"),
            (journal.Journal, "add_result", "commit"),
            (journal.Journal, "finish", "commit"),
            (writer, "append", "append"),
            (os, "replace", "rename"),
            (journal.Journal, "results", "write"),
            (os, "fsync", "write"),
            (job_module, "make_summary", "summary"),
        ):
            self.wrap(owner, name, phase)
        whole_append = writer.append

        def torn_append(path: Path, lines: list[bytes]) -> None:
            """What a kill in the middle of a large write leaves behind."""
            if self._phase == "append" and self._passes == 1 and 0.2 < self._where < 0.5:
                data = b"".join(lines)
                whole_append.__wrapped__(path, [data[: int(len(data) * self._where)]])
            whole_append(path, lines)

        writer.append = torn_append


def fork_job(options: dict[str, Any], rng: random.Random, active: mmap.mmap) -> tuple[int, str]:
    """One run to its end or its kill -> (wait status, how the kill was chosen)."""
    timed = rng.random() < 0.4
    phase = None if timed else rng.choice(PHASES)
    passes = 1 + int(rng.expovariate(0.3 if phase in ("scan", "encode", "step") else 1.0))
    instruments = Instruments(active, phase, passes, rng.random())
    after_s = rng.uniform(0, 0.06)
    active[:] = bytes(len(active))
    pid = os.fork()
    if pid == 0:
        code = CODE_BUG
        try:
            instruments.install()
            writer.FLUSH_S = 0.005
            code = run_job(
                options, {"max_num_seqs": 4, "step_s": 0.0005}, reporter=Quiet(), clock=time.time_ns
            )
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if timed:
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1], "timed" if timed else "point"


def whole_lines(path: Path) -> dict[str, bytes]:
    """custom_id -> line, without a torn last one; asserts that no row is there twice."""
    if not path.exists():
        return {}
    lines = path.read_bytes().split(b"\n")[:-1]
    found = {json.loads(line)["custom_id"]: line for line in lines}
    assert len(found) == len(lines), "a row is in the answers file twice"
    return found


def without_created(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    for row in rows:
        del row["response"]["body"]["created"]
    return rows


def make_lines(rng: random.Random) -> list[str]:
    """Rows that are answered, and six that fail, each for another reason."""
    faults = {5: "REFUSE", 17: "BADTEMPLATE", 30: "ERROR"}
    lines = []
    for i in range(NUM_ROWS):
        text = f"{faults.get(i, 'question')} {rng.random()} {'x' * rng.randrange(200)}"
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        if i == 40:
            body["tools"] = [{}]
        custom_id = "row 3" if i == 50 else f"row {i}"
        line = {"custom_id": custom_id, "url": "/v1/chat/completions", "body": body}
        lines.append("not json" if i == 20 else json.dumps(line))
    return lines


def edit_lines(lines: list[str], rng: random.Random) -> list[str]:
    """Rows removed and added, the rest in another order; another one is there twice."""
    kept = lines[10:50] + lines[51:]
    added = [line.replace('"row ', '"new ') for line in make_lines(rng)[:5]]
    return [*rng.sample(kept + added, len(kept) + len(added)), lines[45]]


def check_end(folder: Path, seen: dict[str, bytes]) -> None:
    """The finished files against those of a run that was never killed."""
    options = {"input": str(folder / "in.jsonl"), "output": str(folder / "reference.jsonl")}
    code = run_job(
        {**options, "overwrite": True}, {"max_num_seqs": 4}, reporter=Quiet(), clock=time.time_ns
    )
    assert code == 3
    assert without_created(folder / "out.jsonl") == without_created(folder / "reference.jsonl")
    errors = (folder / "out.errors.jsonl").read_bytes()
    assert errors == (folder / "reference.errors.jsonl").read_bytes()
    assert seen.items() <= whole_lines(folder / "out.jsonl").items(), "a finished row changed"
    assert not list(folder.glob(".*.tmp")), "a temporary file is left"
    summary, reference = (
        json.loads((folder / f"{name}.summary.json").read_text())["rows"]
        for name in ("out", "reference")
    )
    assert summary == reference


def main(folder: Path, num_kills: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    active = mmap.mmap(-1, len(PHASES))
    hits: collections.Counter[str] = collections.Counter()
    jobs = 0
    while hits["kills"] < num_kills:
        work = folder / f"job{jobs}"
        work.mkdir(parents=True)
        first = make_lines(rng)
        seen: dict[str, bytes] = {}
        for lines in (first, edit_lines(first, rng)):
            (work / "in.jsonl").write_text("\n".join(lines))
            present = {json.loads(line)["custom_id"] for line in lines if line[0] == "{"}
            seen = {name: line for name, line in seen.items() if name in present}
            seen = kill_until_done(work, seen, present, rng, active, hits)
            check_end(work, seen)
        jobs += 1
    return {"kills": hits.pop("kills"), "jobs": jobs, "hits": dict(hits)}


def kill_until_done(
    work: Path,
    seen: dict[str, bytes],
    present: set[str],
    rng: random.Random,
    active: mmap.mmap,
    hits: collections.Counter[str],
) -> dict[str, bytes]:
    """Run the job until it ends by itself -> the rows that the last kill left in the file."""
    options = {"input": str(work / "in.jsonl"), "output": str(work / "out.jsonl")}
    while True:
        status, how = fork_job(options, rng, active)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 3, f"exit code {os.WEXITSTATUS(status)}"
            return seen
        hits.update(["kills", how, *(p for i, p in enumerate(PHASES) if active[i])])
        now = whole_lines(work / "out.jsonl")
        assert seen.items() <= now.items(), "a row was lost or altered"
        seen = {name: line for name, line in now.items() if name in present}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
