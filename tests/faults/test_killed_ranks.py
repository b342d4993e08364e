"""Ranks that die: the error names rank and phase, at once; nothing is left; a batch goes on.

Real processes are killed with SIGKILL, in every phase.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import zmq

from seesaw.engine.ranks import Ranks
from seesaw.engine.wire import decode
from seesaw.errors import EngineDeadError
from tests.engine.rank_harness import Walker, engine_on, generate
from tests.faults.conftest import children
from tests.faults.strike import LIMIT_S, PROMPTS, SAMPLING, SMALL_TIER, strike


@pytest.mark.parametrize("moment", ["prefill", "decode", "load"])
def test_a_killed_rank_is_named_with_its_phase(tiny_checkpoint, monkeypatch, moment):
    before = children()
    rank = random.randrange(2)
    print(f"rank {rank}")
    struck = strike(monkeypatch, moment, rank, signal.SIGKILL)
    with engine_on(None, tiny_checkpoint("llama"), "pp2", "tp2", **SMALL_TIER) as engine:
        with pytest.raises(EngineDeadError, match=rf"rank {rank} was killed by SIGKILL") as caught:
            generate(engine, PROMPTS, SAMPLING)
        assert struck, "the step never came"
        assert time.monotonic() - struck[0] < LIMIT_S
        said = str(caught.value)
        assert any(word in said for word in ("step", "stores or loads")), said
        if moment == "prefill":
            assert "prefill step" in said, said
        assert children() == before, "a worker is still there"
        with pytest.raises(EngineDeadError, match=f"rank {rank}"):
            engine.step()


@pytest.mark.parametrize("reshard_from", ["host", "peers"])
def test_a_rank_that_dies_in_a_transition_is_named(tiny_checkpoint, reshard_from):
    """It is stopped first, so that it is killed inside and the others wait for its part."""
    before = children()
    model = tiny_checkpoint("llama")
    with engine_on(None, model, "pp2", "tp2", reshard_from=reshard_from) as engine:
        assert len(generate(engine, PROMPTS, SAMPLING)) == len(PROMPTS)
        walker = Walker(engine)
        pid = walker.executor._ranks.pids[1]
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        began_s = time.monotonic()
        with pytest.raises(
            EngineDeadError, match=r"rank 1 was killed by SIGKILL.*the transition to prefill"
        ):
            walker.change()
        assert time.monotonic() - began_s < LIMIT_S
        assert children() == before


@pytest.mark.parametrize("pause_s", [0.0, 0.5])
def test_a_rank_that_dies_at_the_start_is_named(tiny_checkpoint, monkeypatch, pause_s):
    """It is seen when the rank is handed its files, or later."""
    before = children()
    set_up = Ranks.set_up

    def killing(self, rank, setup, files):
        if rank == 1:
            os.kill(self.pids[1], signal.SIGKILL)
            time.sleep(pause_s)
        set_up(self, rank, setup, files)

    monkeypatch.setattr(Ranks, "set_up", killing)
    with (
        pytest.raises(EngineDeadError, match=r"rank 1 was killed by SIGKILL.*start-up"),
        engine_on(None, tiny_checkpoint("llama"), "pp2", "tp2"),
    ):
        pass
    assert children() == before


def test_workers_end_with_a_driver_that_was_killed(tiny_checkpoint, tmp_path):
    code = f"""
from tests.engine.rank_harness import engine_on, executor_of
with engine_on(None, {str(tiny_checkpoint("llama"))!r}, "pp2", "tp2") as engine:
    executor = executor_of(engine)
    print(*executor._ranks.pids, executor._ranks.folder, flush=True)
    import time; time.sleep(600)
"""
    driver = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "TMPDIR": str(tmp_path)},
    )
    assert driver.stdout is not None
    one, two, folder = driver.stdout.readline().split()
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + LIMIT_S
    while any(psutil.pid_exists(int(pid)) for pid in (one, two)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(int(pid)) for pid in (one, two))
    assert not Path(folder).exists()


def test_a_worker_ends_only_when_it_was_heard_why():
    """A copy thread fails: it ends the process at once, whatever the main thread waits for."""
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context, ours, theirs:
        inbox = context.socket(zmq.PULL)
        inbox.bind(f"ipc://{folder}/driver")
        code = f"""
import socket, threading
from seesaw.engine.worker import WorkerProcess
worker = WorkerProcess(3, {folder!r}, socket.socket(fileno={theirs.fileno()}))
error = RuntimeError("a page was " + 100_000 * "very " + "bad")
threading.Timer(0.1, worker._report, [error]).start()
worker.run()
"""
        worker = subprocess.Popen([sys.executable, "-c", code], pass_fds=(theirs.fileno(),))
        assert worker.wait(60) == 1
        assert inbox.poll(1000), "it ended without a word"
        failed = decode(inbox.recv())
        inbox.close()
    assert (failed.rank, failed.where) == (3, "moving KV or weights")
    assert failed.error.startswith("RuntimeError: a page was very")
