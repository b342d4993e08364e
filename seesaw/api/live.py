"""Shows where an engine stands while somebody else steps it: a thread looks now and then."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from seesaw.batch.progress import PlainReporter, Progress, Reporter, Speedometer
from seesaw.engine.engine import Engine

SHOW_AFTER_S = 2.0
LOOK_S = 0.25


@contextlib.contextmanager
def shown(engine: Engine, num_requests: int, output_len: int) -> Iterator[None]:
    """Progress of `num_requests` with answers of `output_len` tokens, from now on until the end of
    the block; nothing where that takes no longer than SHOW_AFTER_S."""
    done = threading.Event()
    looks = threading.Thread(
        target=_look, args=(engine, num_requests, output_len, done), name="seesaw-live", daemon=True
    )
    looks.start()
    try:
        yield
    finally:
        done.set()
        looks.join()


def _look(engine: Engine, num_requests: int, output_len: int, done: threading.Event) -> None:
    began_s, before = time.monotonic(), engine.status
    if done.wait(SHOW_AFTER_S):
        return
    with contextlib.ExitStack() as stack:
        reporter: Reporter = PlainReporter()
        if sys.stderr.isatty():
            from seesaw.api.batch_progress import TerminalReporter

            reporter = stack.enter_context(TerminalReporter())
        speed = Speedometer()
        while not done.wait(LOOK_S):
            now_s, status = time.monotonic(), engine.status
            status = status.since(before)
            answered = max(0, num_requests - status.num_begun - status.num_waiting)
            reporter.progress(
                Progress(
                    phase="run",
                    total_rows=num_requests,
                    answered_rows=answered,
                    running_rows=status.num_begun,
                    completion_tokens=answered * output_len,
                    elapsed_s=now_s - began_s,
                    run_rows=answered,
                    engine=status,
                    rates=speed.rates(status, now_s),
                )
            )
