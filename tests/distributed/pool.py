"""Processes that stay up and play the ranks of one test after another.

For each test they connect anew, so that leaving and joining groups is part of all of them.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any

import torch

from seesaw.distributed import Kind, RankGroup, new_shared_file

TIMEOUT_S = 60.0
SLOT_BYTES = 256 << 10


class RankPool:
    """`kind`: what the ranks of the next run are joined by."""

    def __init__(self, num_processes: int, kind: Kind = "gloo") -> None:
        self.kind = kind
        context = multiprocessing.get_context("forkserver")
        # Imported once, for all processes of all pools.
        context.set_forkserver_preload(["tests.distributed.tasks"])
        self._folder = tempfile.TemporaryDirectory()
        self._num_runs = 0
        self.processes, self._pipes = [], []
        for _ in range(num_processes):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self._pipes.append(mine)

    def start(self, task: Callable[..., Any], num_ranks: int, *args: Any) -> None:
        """Have `task(group, *args)` begin on the ranks 0 .. num_ranks."""
        self._num_runs += 1
        path = Path(self._folder.name) / f"store{self._num_runs}"
        fd = new_shared_file(num_ranks, SLOT_BYTES) if self.kind == "shm" else None
        for rank, pipe in enumerate(self._pipes[:num_ranks]):
            pipe.send((task, rank, num_ranks, self.kind, path, args))
            if fd is not None:
                pid = self.processes[rank].pid
                assert pid is not None
                send_handle(pipe, fd, pid)
        if fd is not None:
            os.close(fd)

    def result(self, rank: int) -> Any:
        """What the rank's task returned; raises AssertionError with its traceback."""
        assert self._pipes[rank].poll(TIMEOUT_S), f"rank {rank}: no answer in {TIMEOUT_S} s"
        result, error = self._pipes[rank].recv()
        assert error is None, f"rank {rank}:\n{error}"
        return result

    def run(self, task: Callable[..., Any], num_ranks: int, *args: Any) -> list[Any]:
        self.start(task, num_ranks, *args)
        return [self.result(rank) for rank in range(num_ranks)]

    def close(self) -> None:
        for process, pipe in zip(self.processes, self._pipes, strict=True):
            pipe.close()
            process.join(5)
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            task, rank, num_ranks, kind, path, args = pipe.recv()
            fd = recv_handle(pipe) if kind == "shm" else None
        except EOFError:
            return
        try:
            group = RankGroup.connect(
                rank, num_ranks, torch.device("cpu"), kind, path,
                shared_fd=fd, slot_bytes=SLOT_BYTES, timeout_s=TIMEOUT_S,
            )  # fmt: skip
            result = task(group, *args)
            group.close()
        except Exception:
            pipe.send((None, traceback.format_exc()))
            return
        pipe.send((result, None))
