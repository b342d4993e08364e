"""Engines whose ranks talk over TCP or gloo answer as over shared memory, which is the default that
all other tests of several ranks run with; what cannot be had is refused first."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seesaw.api.llm import LLM
from seesaw.distributed import choose
from seesaw.errors import ConfigError
from seesaw.sampling_params import SamplingParams
from tests.engine.rank_harness import RankPool, engine_on, generate

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
PROMPTS = [[5 + i, 6, 7, 8, 9 + i] * (1 + 4 * i) for i in range(6)]
SMALL = {"max_model_len": 128, "host_kv_memory": "1MiB"}


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    pytest.importorskip("seesaw._cpu")
    made = RankPool()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("prefill", "decode", "settings"),
    [
        ("pp2", "tp2", {}),
        ("tp2", "pp2", {"reload": "missing", "reshard_from": "peers"}),
        ("pp2", "tp2", {"dtype": "float16", "reload": "missing"}),
        ("dp2-tp2", "dp2-pp2", {"reload": "missing", "reshard_from": "peers"}),
    ],
)
def test_every_kind_gives_the_same_answers(
    prefill: str, decode: str, settings: dict[str, Any], tiny_checkpoint: Any, pool: RankPool
) -> None:
    """In float32 and float16 a sum of two has one result, whoever adds."""
    model = tiny_checkpoint("llama", num_hidden_layers=5)
    ranks = pool.of(4 if prefill.startswith("dp2") else 2)
    found = []
    for kind in ("shm", "tcp", "gloo"):
        with engine_on(ranks, model, prefill, decode, collectives=kind, **SMALL, **settings) as e:
            found.append([answer.token_ids for answer in generate(e, PROMPTS, GREEDY)])
    assert found[1:] == found[:-1]


@pytest.mark.parametrize("kind", ["shm", "tcp", "gloo"])
def test_one_device_has_nobody_to_talk_to(kind: str, tiny_checkpoint: Any) -> None:
    with (
        pytest.raises(ConfigError, match=rf"collectives='{kind}'.*Leave it out"),
        engine_on(None, tiny_checkpoint("llama"), "tp1", "tp1", policy="continuous",
                  collectives=kind),
    ):  # fmt: skip
        pass


def test_an_unknown_kind_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match="collectives='mpi': expected one of auto, shm, tcp, gloo"),
        engine_on(None, Path("none"), "pp2", "tp2", collectives="mpi"),
    ):
        pass


@pytest.mark.parametrize("kind", ["shm", "tcp", "gloo"])
def test_gpus_have_a_way_of_their_own(kind: Any) -> None:
    assert choose("auto", "cuda") == "nccl"
    with pytest.raises(ConfigError, match=rf"collectives='{kind}'.*NCCL"):
        choose(kind, "cuda")


def test_without_the_module_gloo_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    imports = builtins.__import__

    def importing(name: str, *rest: Any, **named: Any) -> Any:
        if name == "seesaw._cpu":
            raise ImportError(name)
        return imports(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", importing)
    assert (choose("auto", "cpu"), choose("gloo", "cpu")) == ("gloo", "gloo")
    for kind in ("shm", "tcp"):
        with pytest.raises(ConfigError, match=rf"collectives='{kind}'.*not built.*'gloo'"):
            choose(kind, "cpu")


def test_ranks_that_could_not_listen_are_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("seesaw._cpu")
    assert choose("tcp", "cpu") == "tcp"
    monkeypatch.setenv("SEESAW_COMM_HOST", "192.0.2.7")
    assert choose("shm", "cpu") == "shm"
    with pytest.raises(ConfigError, match=r"SEESAW_COMM_HOST=192\.0\.2\.7: a rank cannot listen"):
        choose("tcp", "cpu")


@pytest.mark.parametrize("reload", ["none", "missing", "all"])
def test_what_a_transition_fetches_is_refused_where_there_is_none(
    reload: str, tiny_checkpoint: Any
) -> None:
    with pytest.raises(ConfigError, match=rf"reload='{reload}'.*no weights move"):
        LLM(str(tiny_checkpoint("llama")), reload=reload, device="cpu")
