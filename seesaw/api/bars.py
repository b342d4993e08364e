"""How far work is that can be counted: a bar on a terminal, once it takes longer than a moment;
elsewhere a line now and then, as for a batch job."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHOW_AFTER_S = 2
LINE_EVERY_S = 30.0


@contextmanager
def shown(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `progress(done, in all)`."""
    if not sys.stderr.isatty():
        yield _in_lines(what)
        return
    from tqdm import tqdm

    with tqdm(desc=what, unit="", delay=SHOW_AFTER_S, leave=False, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _in_lines(what: str) -> Callable[[int, int], None]:
    last_s = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= LINE_EVERY_S:
            last_s = time.monotonic()
            print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    return show
