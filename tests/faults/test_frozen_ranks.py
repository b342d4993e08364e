"""Ranks that live and do not answer: stopped in any phase, for good or for a moment."""

from __future__ import annotations

import random
import re
import signal
import time
from contextlib import closing

import pytest

from seesaw.engine.ranks import Ranks
from seesaw.errors import ConfigError, EngineDeadError
from tests.engine.rank_harness import engine_on, generate
from tests.faults.conftest import children
from tests.faults.strike import LIMIT_S, PROMPTS, SAMPLING, SMALL_TIER, strike


@pytest.mark.parametrize("moment", ["prefill", "decode", "transition"])
def test_a_stopped_rank_is_named_and_ended(tiny_checkpoint, monkeypatch, moment):
    rank = random.randrange(2)
    print(f"rank {rank}")
    monkeypatch.setenv("SEESAW_RANK_TIMEOUT", "3")
    before = children()
    struck = strike(monkeypatch, moment, rank, signal.SIGSTOP)
    with engine_on(None, tiny_checkpoint("llama"), "pp2", "tp2", **SMALL_TIER) as engine:
        with pytest.raises(
            EngineDeadError,
            match=rf"rank {rank} does not answer.* is stopped.*it was in .*(step|transition|load)",
        ) as caught:
            generate(engine, PROMPTS, SAMPLING)
        assert struck, "the step never came"
        assert time.monotonic() - struck[0] < LIMIT_S
        if moment == "prefill":
            assert "it was in prefill step" in str(caught.value)
        assert children() == before, "a worker is still there"


def test_a_rank_that_is_stopped_for_a_moment_costs_no_answer(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SEESAW_RANK_TIMEOUT", "30")
    model = tiny_checkpoint("llama")
    with engine_on(None, model, "pp2", "tp2", **SMALL_TIER) as engine:
        expected = [output.token_ids for output in generate(engine, PROMPTS, SAMPLING)]
        struck = strike(monkeypatch, "decode", 1, signal.SIGSTOP, resume_s=1.5)
        found = [output.token_ids for output in generate(engine, PROMPTS, SAMPLING)]
    assert struck
    assert found == expected


def test_a_rank_that_has_nothing_to_say_answers(monkeypatch):
    monkeypatch.setenv("SEESAW_RANK_TIMEOUT", "3")
    with closing(Ranks(1)) as ranks:
        deadline_s = time.monotonic() + 60
        while "has not said" in ranks.last_words(0):
            assert ranks.receive(0.1) is None
            assert time.monotonic() < deadline_s
        assert ranks.receive(4.5) is None, "longer than it may be silent"
        assert re.search(r"said \d+\.\d s ago: starting, since \d", ranks.last_words(0))


def test_a_timeout_that_is_none_is_refused(tiny_checkpoint, monkeypatch):
    for value in ("-1", "soon", "inf"):
        monkeypatch.setenv("SEESAW_RANK_TIMEOUT", value)
        with (
            pytest.raises(ConfigError, match=f"SEESAW_RANK_TIMEOUT='{value}': expected seconds"),
            engine_on(None, tiny_checkpoint("llama"), "pp2", "tp2"),
        ):
            pass
