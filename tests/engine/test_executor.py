"""The executor's thread: it ends when it should, and takes nothing with it."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref

import pytest

from seesaw.engine.executor import InProcessExecutor
from seesaw.engine.messages import StepReport
from seesaw.errors import EngineDeadError
from seesaw.scheduler.output import SchedulerOutput

FAILING = 99


class FakeStep:
    """Of a device that has computed when the call returns."""

    def __init__(self, report: StepReport) -> None:
        self._report = report

    def is_done(self) -> bool:
        return True

    def finish(self) -> StepReport:
        return self._report


class FakeRunner:
    """Waits for `go` in each step."""

    steps_ahead = 0

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.steps: list[object] = []
        self.closed = False

    def begin(self, step):
        self.steps.append(step.step_id)
        self.begun.set()
        assert self.go.wait(30)
        if step.step_id == FAILING:
            raise ZeroDivisionError("a test's doing")
        return FakeStep(StepReport(rank=0, step_id=step.step_id, token_ids=[step.step_id]))

    def needs_results(self, step):
        return False

    def close(self) -> None:
        self.closed = True


def test_steps_come_back_in_order():
    runner = FakeRunner()
    runner.go.set()
    executor = InProcessExecutor(lambda report, go_on: runner)
    for step in range(5):
        executor.submit(SchedulerOutput(step))
    found = [executor.collect() for _ in range(5)]
    assert [(replica, done.step_id) for replica, done in found] == [(0, i) for i in range(5)]
    executor.shutdown()
    executor.shutdown()


def test_shutdown_begins_no_step_that_waits():
    runner = FakeRunner()
    executor = InProcessExecutor(lambda report, go_on: runner)
    for step in range(3):
        executor.submit(SchedulerOutput(step))
    assert runner.begun.wait(30)
    threading.Timer(0.1, runner.go.set).start()
    executor.shutdown()
    assert runner.steps == [0]
    assert runner.closed


def test_a_failure_is_told_each_time_and_holds_no_memory():
    runner = FakeRunner()
    runner.go.set()
    alive = weakref.ref(runner)
    made = [runner]
    executor = InProcessExecutor(lambda report, go_on: made.pop())
    del runner
    executor.submit(SchedulerOutput(FAILING))
    for _ in range(2):
        with pytest.raises(EngineDeadError, match="ZeroDivisionError: a test's doing") as caught:
            executor.collect()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    executor.shutdown()
    assert alive() is None, "the error of a dead engine keeps its weights"


def test_a_process_may_end_while_a_step_runs():
    """As after Ctrl-C in a script that never shuts its engine down."""
    code = (
        "import threading, torch\n"
        "from seesaw.engine.executor import InProcessExecutor\n"
        "from seesaw.scheduler.output import SchedulerOutput\n"
        "begun = threading.Event()\n"
        "class Runner:\n"
        "    steps_ahead = 0\n"
        "    def begin(self, step):\n"
        "        begun.set()\n"
        "        for _ in range(20):\n"
        "            torch.linalg.svd(torch.randn(150, 150))\n"
        "    def close(self): pass\n"
        "executor = InProcessExecutor(lambda report, go_on: Runner())\n"
        "executor.submit(SchedulerOutput(1))\n"
        "executor.submit(SchedulerOutput(2))\n"
        "begun.wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_making_the_runner_raises_is_raised_here():
    def failing(report, go_on):
        raise ZeroDivisionError("a test's doing")

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="a test's doing"):
        InProcessExecutor(failing)
    assert threading.active_count() == before


def test_loading_ends_soon_after_an_interruption():
    """The thread hears of it at its next piece of weights, so the process can end."""
    code = (
        "import signal, threading, time, os\n"
        # a shell's background job begins with it ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from seesaw.engine.executor import InProcessExecutor\n"
        "def make(report, go_on):\n"
        "    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    while True:\n"
        "        time.sleep(0.01)\n"
        "        go_on()\n"
        "try:\n"
        "    InProcessExecutor(make)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
