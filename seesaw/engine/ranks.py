"""Worker processes of one machine: starts them, talks to them, sees at once when one ends and soon
when one no longer answers.

Knows messages and processes, nothing of steps. Each worker gets one end of a socket pair, over
which files (weights, tier) are handed to it and by whose end it learns that the driver is gone;
messages go over ZeroMQ sockets in a folder of their own (with a path, since abstract ones do not
cross network namespaces).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence

import psutil
import zmq

from seesaw import envs
from seesaw.engine.messages import PING, Alive, FromWorker, Setup, Stop, ToWorker
from seesaw.engine.rank_command import rank_command, rank_environment
from seesaw.engine.watchdog import LOOK_S, Watchdog
from seesaw.engine.wire import decode, encode
from seesaw.errors import ConfigError, EngineDeadError

STOP_S = 5.0
"""How long workers may take to end by themselves."""

LAST_WORDS_MS = 50
"""How long what a worker sent may take to arrive after its end."""

MOST_PATH = 90  # bytes; the system allows 107 in the path of a socket


START_S = 120.0
"""How long a worker may take to its first word: Python and torch are read from a cold disk, by as
many processes as there are ranks."""


class RankLost(EngineDeadError):
    """A worker process is of no use any more. `rank` counts over all replicas."""

    def __init__(self, rank: int, what: str) -> None:
        self.rank = rank
        super().__init__(f"rank {rank} {what}")


class RankDied(RankLost):
    """It ended."""

    def __init__(self, rank: int, returncode: int) -> None:
        if returncode < 0:
            name = signal.Signals(-returncode).name
            how = f"was killed by {name}"
            if returncode == -signal.SIGKILL:
                how += " (the system does that when memory runs out)"
        else:
            how = f"ended with exit code {returncode}"
        super().__init__(rank, how)


class RankSilent(RankLost):
    """It lives and does not answer."""

    def __init__(self, rank: int, pid: int, seconds: float) -> None:
        try:
            state = f"process {pid} is {psutil.Process(pid).status()}"
        except psutil.Error:
            state = f"process {pid} cannot be looked at"
        super().__init__(
            rank,
            f"does not answer since {seconds:.0f} s ({state}): it was stopped, or its host is "
            "stuck. Where the machine is only slow, raise SEESAW_RANK_TIMEOUT",
        )


class Ranks:
    """`num_ranks` worker processes, numbered over all replicas.

    For who plays them in tests: the executor calls `set_up`, `send`, `send_encoded`, `receive`
    (which may raise RankLost), `last_words`, `first_killed` and `close`.
    """

    def __init__(self, num_ranks: int, *, environment: dict[str, str] | None = None) -> None:
        self.num_ranks = num_ranks
        self._timeout_s = envs.rank_timeout_s()
        self.folder = _make_folder()
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.bind(f"ipc://{self.folder}/driver")
        self._outboxes = [self._context.socket(zmq.PUSH) for _ in range(num_ranks)]
        for rank, outbox in enumerate(self._outboxes):
            # Connected, not bound, and without a limit: a send never waits for a worker that is
            # not there yet, or not any more.
            outbox.setsockopt(zmq.SNDHWM, 0)
            outbox.connect(f"ipc://{self.folder}/rank{rank}")
        self._controls: list[socket.socket] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pidfds: list[int] = []
        self._poller = zmq.Poller()
        self._poller.register(self._inbox, zmq.POLLIN)
        self._num_setups = [0] * num_ranks
        self._watchdog = Watchdog(num_ranks, time.monotonic)
        self._next_look_s = 0.0
        self._heard = [False] * num_ranks  # since the last look
        self._started = [False] * num_ranks
        self._last_words: list[tuple[float, Alive] | None] = [None] * num_ranks  # when, what
        self._closed = False
        atexit.register(self.close)
        try:
            for rank in range(num_ranks):
                self._start(rank, rank_environment(rank, environment))
        except BaseException:
            self.close()
            raise

    def _start(self, rank: int, environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self._controls.append(ours)
        with theirs:
            arguments = [str(rank), self.folder, str(theirs.fileno())]
            command = rank_command(rank, "seesaw.engine.worker", arguments)
            try:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    # A Ctrl-C at the terminal is the driver's to handle.
                    start_new_session=True,
                )
            except OSError as error:
                raise ConfigError(
                    f"rank {rank} cannot be started with {command[0]!r} ({error}). Check "
                    "SEESAW_RANK_COMMAND."
                ) from error
        self._processes.append(process)
        self._pidfds.append(os.pidfd_open(process.pid))
        self._poller.register(self._pidfds[-1], zmq.POLLIN)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def send(self, rank: int, message: ToWorker) -> None:
        self.send_encoded([rank], encode(message))

    def send_encoded(self, ranks: Sequence[int], data: bytes) -> None:
        for rank in ranks:
            self._outboxes[rank].send(data)

    def set_up(self, rank: int, setup: Setup, files: Sequence[int]) -> None:
        """Hand a worker its files and its setup; it may have had another one before."""
        self._num_setups[rank] += 1
        try:
            socket.send_fds(self._controls[rank], [bytes([len(files)])], list(files))
        except OSError:
            self._raise_if_died()
            raise
        self.send(rank, setup)

    @property
    def num_setups(self) -> int:
        """How often the ranks have been set up."""
        return max(self._num_setups)

    def receive(self, timeout_s: float | None = None) -> FromWorker | None:
        """The next message; None where the time is over. Raises RankDied as soon as a worker ends,
        though messages that it sent before are returned first, and RankSilent where one has
        answered nothing for SEESAW_RANK_TIMEOUT."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._look()
            wait_s = LOOK_S
            if deadline_s is not None:
                wait_s = min(wait_s, max(0.0, deadline_s - time.monotonic()))
            ready = dict(self._poller.poll(round(wait_s * 1000)))
            # What a worker sent last may be seen after its end.
            if self._inbox in ready or (ready and self._inbox.poll(LAST_WORDS_MS)):
                message: FromWorker = decode(self._inbox.recv())
                if not self._note(message):
                    return message
            elif ready:
                self._raise_if_died()
            if deadline_s is not None and time.monotonic() >= deadline_s:
                return None

    def _note(self, message: FromWorker) -> bool:
        """Whether it was an answer to a ping, and nothing else. Any message is one too."""
        rank = message.rank
        self._heard[rank] = self._started[rank] = True
        self._watchdog.heard(rank)
        if isinstance(message, Alive):
            self._last_words[rank] = (time.monotonic(), message)
            return True
        return False

    def _look(self) -> None:
        """Now and then: ask ranks that have been silent since the last time. Raises RankSilent."""
        now_s = time.monotonic()
        if now_s < self._next_look_s or not self._timeout_s:
            return
        self._next_look_s = now_s + LOOK_S
        for rank, silent_s in enumerate(self._watchdog.look()):
            most_s = self._timeout_s if self._started[rank] else max(START_S, self._timeout_s)
            if silent_s > most_s:
                raise RankSilent(rank, self.pids[rank], silent_s)
            if not self._heard[rank] and not self._watchdog.owes(rank):
                self._watchdog.owe(rank)
                with contextlib.suppress(OSError):  # it has ended, which is seen otherwise
                    self._controls[rank].send(PING)
            self._heard[rank] = False

    def last_words(self, rank: int) -> str:
        """What the rank said when it was last asked, for people."""
        heard = self._last_words[rank]
        if heard is None:
            return "was never asked" if self._started[rank] else "has not said anything yet"
        heard_s, said = heard
        return (
            f"said {time.monotonic() - heard_s:.1f} s ago: {said.doing}, since "
            f"{said.seconds:.1f} s, {said.num_copies} copies under way"
        )

    def _raise_if_died(self) -> None:
        """The one that was killed, rather than one that ended because it had lost its peer."""
        time.sleep(0.05)  # who was killed together is seen together
        codes = {rank: process.poll() for rank, process in enumerate(self._processes)}
        ended = {rank: code for rank, code in codes.items() if code is not None}
        for rank, code in sorted(ended.items(), key=lambda item: (item[1] >= 0, item[0])):
            raise RankDied(rank, code)

    def first_killed(self, within_s: float) -> RankDied | None:
        """A worker that dies of a signal within that time: the cause where another one reports
        that its peer is gone."""
        poll = select.poll()
        for pidfd in self._pidfds:
            poll.register(pidfd, select.POLLIN)
        poll.poll(within_s * 1000)
        for rank, process in enumerate(self._processes):
            code = process.poll()
            if code is not None and code < 0:
                return RankDied(rank, code)
        return None

    def close(self, *, kill: bool = False) -> None:
        """End all workers, by force where they do not listen or `kill` says so; leaves no process,
        file or socket behind. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if not kill:
            with contextlib.suppress(zmq.ZMQError):
                self.send_encoded(range(len(self._processes)), encode(Stop()))
            self._wait(STOP_S)
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for process in self._processes:
            process.wait()
        for control in self._controls:
            control.close()
        for pidfd in self._pidfds:
            os.close(pidfd)
        for outbox in self._outboxes:
            outbox.close(linger=0)
        self._inbox.close(linger=0)
        self._context.term()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.close)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))


def _make_folder() -> str:
    folder = tempfile.mkdtemp(prefix="seesaw-")
    if len(os.fsencode(folder)) <= MOST_PATH:
        return folder
    os.rmdir(folder)
    return tempfile.mkdtemp(prefix="seesaw-", dir="/tmp")
