"""Links between ranks: a cut one is named with both ranks within 10 seconds, slow ones and those
whose reader is busy are left alone.

Real links between network namespaces; needs root.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

pytest.importorskip("seesaw._cpu")

from seesaw.errors import EngineDeadError
from tests.engine.rank_harness import engine_on, generate
from tests.faults.link_rank import READER_IS_BUSY_S
from tests.faults.namespaces import Link, new_link
from tests.faults.strike import LIMIT_S, PROMPTS, SAMPLING, SMALL_TIER

Heard = dict[tuple[str, int], tuple[float, str]]
"""By task and rank: when it said what."""


class LinkRanks:
    """Two processes of `tests.faults.link_rank` for each task, over a link of their own."""

    def __init__(self, links: Mapping[str, Link], folder: Path) -> None:
        arguments = [
            f"{task}:{rank}:{folder / task}-store:{link.name}{rank}:{link.hosts[rank]}"
            for task, link in links.items()
            for rank in (0, 1)
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.link_rank", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def hear(self, count: int) -> Heard:
        """The next lines, one of each of so many ranks. They end by themselves."""
        assert self._process.stdout is not None
        heard: Heard = {}
        while len(heard) < count:
            line = self._process.stdout.readline()
            task, rank, *words = [*line.split(), "", ""]
            assert rank in ("0", "1"), line + self._process.stdout.read()
            assert (task, int(rank)) not in heard, line
            heard[task, int(rank)] = time.monotonic(), " ".join(words).strip()
        return heard

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def test_cut_links_are_named_and_slow_ones_are_not(tmp_path: Path) -> None:
    """All at once, since nearly all of it is waiting."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    cuts = [Link.lose_all, Link.down]
    random.Random(seed).shuffle(cuts)
    with ExitStack() as exits:
        links = {task: exits.enter_context(new_link()) for task in ("sums", "waits", "late_reader")}
        links["late_reader"].slow("30mbit")
        ranks = exits.enter_context(closing(LinkRanks(links, tmp_path)))
        joined = ranks.hear(6)
        assert all(line == "joined" for _, line in joined.values()), joined
        began_s = time.monotonic()
        for cut, task in zip(cuts, ("sums", "waits"), strict=True):
            cut(links[task])
        # Whoever waits is the one to tell; of `waits` that is rank 1 alone.
        said = ranks.hear(5)
    for task, rank in (("sums", 0), ("sums", 1), ("waits", 1)):
        when_s, line = said.pop((task, rank))
        assert "the link between ranks" in line, (task, line)
        assert "cut" in line, (task, line)
        assert when_s - began_s < LIMIT_S, (task, line)
    assert {key: line for key, (_, line) in said.items()} == {
        ("late_reader", rank): "done" for rank in (0, 1)
    }
    assert min(when_s for when_s, _ in said.values()) - began_s > READER_IS_BUSY_S - 2


def test_an_engine_whose_link_is_cut_names_it(tiny_checkpoint, monkeypatch) -> None:
    """Between steps all is quiet, so it is found out in the next one."""
    with new_link() as link:
        for name, value in link.environment().items():
            monkeypatch.setenv(name, value)
        model = tiny_checkpoint("llama")
        with engine_on(None, model, "pp2", "tp2", collectives="tcp", **SMALL_TIER) as engine:
            assert len(generate(engine, PROMPTS, SAMPLING)) == len(PROMPTS)
            link.down()
            began_s = time.monotonic()
            with pytest.raises(
                EngineDeadError,
                match=r"rank [01] failed \((prefill step|decode step|moving KV or weights).*"
                r"the link between ranks [01] and [01] is cut",
            ):
                generate(engine, PROMPTS, SAMPLING)
            assert time.monotonic() - began_s < LIMIT_S
