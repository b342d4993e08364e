"""Links between ranks: a cut one is named with both ranks within 10 seconds, slow ones and those
whose reader is busy are left alone.

Real links between network namespaces; needs root.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("seesaw._cpu")

from seesaw.errors import EngineDeadError
from tests.engine.rank_harness import engine_on, generate
from tests.faults.link_rank import READER_IS_BUSY_S, TIMEOUT_S
from tests.faults.namespaces import Link, new_link
from tests.faults.strike import LIMIT_S, PROMPTS, SAMPLING, SMALL_TIER


class Pair:
    """Two processes of `tests.faults.link_rank` over a link of their own."""

    def __init__(self, task: str, folder: Path, exits: ExitStack) -> None:
        self.link: Link = exits.enter_context(new_link())
        self.ranks: list[subprocess.Popen[str]] = []
        for rank in (0, 1):
            store = str(folder / f"{task}-store")
            process = self.link.start(rank, "tests.faults.link_rank", task, str(rank), store)
            exits.callback(process.wait)
            exits.callback(process.kill)
            self.ranks.append(process)

    def join(self) -> None:
        for process in self.ranks:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == "joined\n", line + process.stdout.read()


def hear(process: subprocess.Popen[str], into: list[tuple[float, str]]) -> threading.Thread:
    def read() -> None:
        assert process.stdout is not None
        line = process.stdout.readline()
        into.append((time.monotonic(), line))

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_cut_links_are_named_and_slow_ones_are_not(tmp_path: Path) -> None:
    """All at once, since nearly all of it is waiting."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    cuts = [Link.lose_all, Link.down]
    random.Random(seed).shuffle(cuts)
    with ExitStack() as exits:
        pairs = {task: Pair(task, tmp_path, exits) for task in ("sums", "waits", "late_reader")}
        pairs["late_reader"].link.slow("30mbit")
        for pair in pairs.values():
            pair.join()
        said: dict[str, list[tuple[float, str]]] = {}
        began_s = time.monotonic()
        threads = []
        for task, pair in pairs.items():
            said[task] = []
            # Whoever waits is the one to tell; of `waits` that is rank 1 alone.
            for rank in (1,) if task == "waits" else (0, 1):
                threads.append(hear(pair.ranks[rank], said[task]))
        for cut, task in zip(cuts, ("sums", "waits"), strict=True):
            cut(pairs[task].link)
        for thread in threads:
            thread.join(TIMEOUT_S)
    for task in ("sums", "waits"):
        assert said[task], f"{task}: nothing was said"
        for when_s, line in said[task]:
            assert "the link between ranks" in line, (task, line)
            assert "cut" in line, (task, line)
            assert when_s - began_s < LIMIT_S, (task, line)
    assert [line for _, line in said["late_reader"]] == ["done\n"] * 2
    assert min(when_s for when_s, _ in said["late_reader"]) - began_s > READER_IS_BUSY_S - 2


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
