"""How far work is that can be counted: a bar on a terminal, once it takes longer than a moment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHOW_AFTER_S = 2


@contextmanager
def shown(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `progress(done, in all)`. Nothing is shown where stderr is no terminal."""
    from tqdm import tqdm

    with tqdm(
        desc=what, unit="", delay=SHOW_AFTER_S, leave=False, disable=None, file=sys.stderr
    ) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
