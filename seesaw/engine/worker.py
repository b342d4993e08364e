"""The process of one device: `python -m seesaw.engine.worker RANK FOLDER CONTROL_FD`.

Started by `ranks.py` only. Takes messages one by one, runs steps, reports; ends when told, when a
step fails, and when the driver is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import shutil
import socket
import sys
import threading
import time
import traceback
from typing import NoReturn

import psutil
import zmq

from seesaw.engine.build import build_runner
from seesaw.engine.last_words import describe
from seesaw.engine.messages import (
    PING,
    Alive,
    Failed,
    FromWorker,
    Inspect,
    Inspected,
    RankSetup,
    Ready,
    Setup,
    Step,
    StepReport,
    ToWorker,
    TransferReport,
)
from seesaw.engine.model_runner import ModelRunner
from seesaw.engine.steps_ahead import StepsAhead
from seesaw.engine.wire import decode, encode

MOST_FILES = 8

LAST_WORDS_MS = 2000
"""How long a worker that failed waits until the driver has heard why."""


class WorkerProcess:
    def __init__(self, rank: int, folder: str, control: socket.socket) -> None:
        self._rank = rank
        self._files: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self._runner: ModelRunner | None = None
        self._ahead: StepsAhead | None = None
        self._doing = ("starting", time.monotonic())  # what, since when
        # Finished copies are reported by the threads that made them, pings answered by another.
        self._sending = threading.Lock()
        with self._sending:
            # First of all: where the driver is gone already, so may the folder be.
            threading.Thread(
                target=self._watch, args=(control, folder), name="seesaw-control", daemon=True
            ).start()
            self._make_sockets(rank, folder)

    def _make_sockets(self, rank: int, folder: str) -> None:
        context = zmq.Context()
        self._inbox = context.socket(zmq.PULL)
        self._inbox.setsockopt(zmq.RCVHWM, 0)
        self._inbox.bind(f"ipc://{folder}/rank{rank}")
        # A context of its own, whose end waits for what was sent.
        self._outgoing = zmq.Context()
        self._outbox = self._outgoing.socket(zmq.PUSH)
        self._outbox.setsockopt(zmq.SNDHWM, 0)
        self._outbox.connect(f"ipc://{folder}/driver")

    def run(self) -> None:
        """Until told to stop. Ends the process where something fails."""
        try:
            while self._take(self._next()):
                pass
        except BaseException as error:
            where = self._doing[0] if self._ahead is None else self._ahead.doing
            self._fail(error, where)
            # With the error its frames would go, and what they hold, in any order: a crash then
            # would be taken for the cause.
            os._exit(1)

    def _next(self) -> ToWorker:
        """The next message; until there is one, steps are reported as they are done."""
        if self._ahead is not None:
            self._ahead.work_until(lambda: self._inbox.poll(0) != 0)
            self._now("waiting for a step")
        message: ToWorker = decode(self._inbox.recv())
        return message

    def _take(self, message: ToWorker) -> bool:
        """Act on one message; False at the end."""
        if isinstance(message, Step):
            assert self._ahead is not None, "a step before the setup"
            self._now(f"{message.output.phase} step {message.output.step_id}")
            self._ahead.begin(message.output)
            return True
        if self._ahead is not None:
            self._ahead.settle()
        if isinstance(message, Setup):
            self._now("loading weights")
            self._close()
            self._runner = self._build(message.setup)
            self._ahead = StepsAhead(self._runner, self._report_step)
            self._send(Ready(self._rank))
        elif isinstance(message, Inspect):
            self._send(self._inspect())
        else:
            self._close()
            return False
        return True

    def _now(self, doing: str) -> None:
        self._doing = (doing, time.monotonic())

    def _close(self) -> None:
        if self._runner is not None:
            self._runner.close()
        self._runner = self._ahead = None

    def _report_step(self, report: StepReport) -> None:
        report.rank = self._rank  # the runner counts within its replica
        self._send(report)

    def _build(self, setup: RankSetup) -> ModelRunner:
        files = self._files.get()
        if setup.cores is not None:
            os.sched_setaffinity(0, setup.cores)
        return build_runner(setup, files, self._report)

    def _report(self, done: TransferReport | BaseException) -> None:
        """For the threads that move KV and weights."""
        if isinstance(done, BaseException):
            self._fail(done, "moving KV or weights")
            os._exit(1)  # the main thread may be waiting for a peer
        self._send(dataclasses.replace(done, rank=self._rank))

    def _inspect(self) -> Inspected:
        assert self._runner is not None, "nothing to look at before the setup"
        phase, hashes, device_bytes = self._runner.inspect()
        return Inspected(
            rank=self._rank,
            phase=phase,
            param_hashes=hashes,
            device_bytes=device_bytes,
            rss_bytes=psutil.Process().memory_info().rss,
        )

    def _answer(self) -> None:
        """That this process lives, whatever its main thread does. For the control thread."""
        doing, since_s = self._doing
        runner = self._runner
        alive = Alive(
            self._rank,
            doing,
            time.monotonic() - since_s,
            0 if runner is None else runner.num_copies,
        )
        with self._sending:
            if not self._outbox.closed:  # it has failed
                self._outbox.send(encode(alive))

    def _fail(self, error: BaseException, where: str) -> None:
        """The last message of this process, which may end as soon as this returns."""
        trace = "".join(traceback.format_exception(error))
        failed = Failed(self._rank, where, _sendable(describe(error)), _sendable(trace))
        with self._sending:
            if self._outbox.closed:
                return  # another thread failed before
            self._outbox.send(encode(failed))
            self._outbox.close(linger=LAST_WORDS_MS)
            self._outgoing.term()

    def _send(self, message: FromWorker) -> None:
        with self._sending:
            self._outbox.send(encode(message))

    def _watch(self, control: socket.socket, folder: str) -> None:
        """Take in files and answer pings; end with the driver, wherever the main thread stands."""
        while True:
            data, files, _, _ = socket.recv_fds(control, 1, MOST_FILES)
            if not data:
                # The driver was killed: nobody else is left to tidy up.
                shutil.rmtree(folder, ignore_errors=True)
                os._exit(1)
            if data == PING:
                self._answer()
            else:
                self._files.put(list(files))


def _sendable(text: str) -> str:
    """Messages are UTF-8; an exception may name a file whose name is not."""
    return text.encode(errors="backslashreplace").decode()


def main(arguments: list[str]) -> NoReturn:
    rank, folder, control = int(arguments[0]), arguments[1], int(arguments[2])
    WorkerProcess(rank, folder, socket.socket(fileno=control)).run()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    # Nothing is left to do. Libraries' threads must not hold the process, nor crash it as it ends:
    # a signal would be taken for the cause.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
