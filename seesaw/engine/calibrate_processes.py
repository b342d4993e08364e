"""Starts the ranks of one way to use the machine, hears their progress, and ends them all when one
fails. Knows nothing of what they measure.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from seesaw.distributed import new_shared_file
from seesaw.engine.calibrate_rank import RankTask
from seesaw.engine.rank_command import rank_command, rank_environment
from seesaw.engine.rank_loader import cores_of_rank
from seesaw.errors import EngineDeadError

MOST_ERROR_TEXT = 4000


@dataclass(frozen=True, slots=True)
class RankReport:
    """Seconds of one run by case, one figure per round, and what one run amounts to. `cpu_share`
    of its threads' time was computed in, where they had enough to do."""

    samples: Mapping[str, Sequence[float]]
    amounts: Mapping[str, float]
    num_threads: int
    cpu_share: float


def run_ranks(task: RankTask, num_threads: int, heard: Callable[[int], None]) -> list[RankReport]:
    """What every rank measured; `task` is of any of them. `num_threads` of each, on cores of their
    own where there are several on the CPU, as in an engine. `heard(rounds done)`. Raises
    EngineDeadError with what a rank said at its end."""
    with tempfile.TemporaryDirectory(prefix="seesaw-") as folder, _shared_file(task) as shared_fd:
        task = replace(task, store_path=f"{folder}/store", shared_fd=shared_fd)
        tasks = [_of_rank(task, rank, num_threads) for rank in range(task.num_ranks)]
        errors = [Path(folder, f"rank{rank}.err") for rank in range(task.num_ranks)]
        processes = [_start(one, path) for one, path in zip(tasks, errors, strict=True)]
        try:
            return _collect(processes, errors, heard)
        finally:
            for process in processes:
                process.kill()
                process.wait()
                _output(process).close()


@contextlib.contextmanager
def _shared_file(task: RankTask) -> Iterator[int | None]:
    if task.num_ranks == 1 or task.collectives != "shm":
        yield None
        return
    fd = new_shared_file(task.num_ranks, task.slot_bytes)
    try:
        yield fd
    finally:
        os.close(fd)


def _of_rank(task: RankTask, rank: int, num_threads: int) -> RankTask:
    on_cpu, alone = task.device == "cpu", task.num_ranks == 1
    return replace(
        task,
        rank=rank,
        device=task.device if on_cpu else f"cuda:{rank}",
        # One rank runs in the engine's own process, with what torch chooses.
        num_threads=None if alone else num_threads,
        cores=cores_of_rank(rank, task.num_ranks, num_threads) if on_cpu and not alone else None,
    )


def _start(task: RankTask, errors: Path) -> subprocess.Popen[str]:
    with errors.open("w") as file:
        return subprocess.Popen(
            rank_command(task.rank, "seesaw.engine.calibrate_rank", [task.to_json()]),
            env=rank_environment(task.rank),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            pass_fds=() if task.shared_fd is None else (task.shared_fd,),
            text=True,
        )


def _collect(
    processes: Sequence[subprocess.Popen[str]],
    errors: Sequence[Path],
    heard: Callable[[int], None],
) -> list[RankReport]:
    reports: dict[int, RankReport] = {}
    with selectors.DefaultSelector() as selector:
        for rank, process in enumerate(processes):
            selector.register(_output(process), selectors.EVENT_READ, rank)
        while selector.get_map():
            for key, _ in selector.select():
                rank = key.data
                line = _output(processes[rank]).readline()
                if not line:
                    selector.unregister(key.fileobj)
                    _check_end(rank, processes[rank], errors[rank], rank in reports)
                    continue
                told = json.loads(line)
                if "samples" in told:
                    reports[rank] = RankReport(**told)
                elif rank == 0:
                    heard(told["done"])
    return [reports[rank] for rank in sorted(reports)]


def _output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None, "stdout is a pipe"
    return process.stdout


def _check_end(rank: int, process: subprocess.Popen[str], errors: Path, has_reported: bool) -> None:
    code = process.wait()
    if code == 0 and has_reported:
        return
    text = errors.read_text(errors="replace").strip()[-MOST_ERROR_TEXT:]
    raise EngineDeadError(f"rank {rank} ended with exit code {code} while it measured:\n{text}")
