"""How many threads a rank has and on which cores; torch of the program around stays as it was."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seesaw.api.llm import LLM
from seesaw.config import EngineConfig
from seesaw.engine.threads import check_threads, threads_of_rank
from seesaw.errors import ConfigError
from seesaw.ops.native import native
from seesaw.sampling_params import SamplingParams
from seesaw.sizes import parse_cores

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def config(**settings: object) -> EngineConfig:
    return EngineConfig.from_kwargs(model="a", **settings)


@pytest.mark.parametrize(
    ("text", "cores"), [("3", (3,)), ("0-2,5", (0, 1, 2, 5)), ("4, 1-1", (4, 1))]
)
def test_cores_are_listed_in_the_order_given(text: str, cores: tuple[int, ...]) -> None:
    assert parse_cores(text) == cores


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "2-1", "0,0", "0-2,1", "1;2", "123456"])
def test_other_lists_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cpu_cores"):
        config(cpu_cores=text)


def test_threads_are_the_cores_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seesaw.engine.threads.usable_cores", lambda: 7.5)
    assert threads_of_rank(config(), 1, native=True) == 7
    assert threads_of_rank(config(), 3, native=True) == 2
    assert threads_of_rank(config(), 9, native=False) == 1
    assert threads_of_rank(config(), 1, native=False) == torch.get_num_threads()
    assert threads_of_rank(config(cpu_threads=5), 3, native=True) == 5
    assert threads_of_rank(config(cpu_cores="0-5"), 2, native=True) == 3


def test_cores_must_be_there_and_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    check_threads(config(cpu_cores="3,0"), CPU, 1)
    check_threads(config(cpu_cores="0-3"), CPU, 2)
    check_threads(config(cpu_cores="0-3", cpu_threads=4), CPU, 1)
    check_threads(config(cpu_threads=64), CPU, 1)
    with pytest.raises(ConfigError, match=r"may not run on 4, 5\. It may on 0, 1, 2, 3"):
        check_threads(config(cpu_cores="3-5"), CPU, 1)
    for cores, settings, ranks in (
        ("0-2", {}, 2),
        ("0", {}, 2),
        ("0-3", {"cpu_threads": 2}, 1),
        ("0-3", {"cpu_threads": 3}, 2),
    ):
        with pytest.raises(ConfigError, match="cores, expected"):
            check_threads(config(cpu_cores=cores, **settings), CPU, ranks)
    with pytest.raises(ConfigError, match="runs on cuda:0"):
        check_threads(config(cpu_threads=2), torch.device("cuda", 0), 1)


def torch_threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_an_engine_leaves_the_torch_of_its_program_alone(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with LLM(str(tiny_checkpoint("qwen3")), cpu_threads=2, device_memory="256MiB") as llm:
            llm.generate(["a b c"], GREEDY, use_tqdm=False)
            assert torch.get_num_threads() == 3
            assert torch_threads_of_a_new_thread() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(native() is None, reason="seesaw._cpu is not built")
def test_kernels_have_the_threads_and_cores_that_were_asked_for(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    module, before = native(), os.sched_getaffinity(0)
    assert module is not None
    core = min(before)
    with LLM(str(tiny_checkpoint("qwen3")), cpu_cores=str(core), device_memory="256MiB") as llm:
        llm.generate(["a b c"], GREEDY, use_tqdm=False)
        assert module.num_threads() == 1
        (worker,) = [t for t in threading.enumerate() if t.name == "seesaw-worker"]
        assert worker.native_id is not None
        assert os.sched_getaffinity(worker.native_id) == {core}
        assert os.sched_getaffinity(0) == before
    with LLM(str(tiny_checkpoint("qwen3")), cpu_threads=3, device_memory="256MiB") as llm:
        llm.generate(["a b c"], GREEDY, use_tqdm=False)
        assert module.num_threads() == 3


@pytest.mark.usefixtures("plain_torch")
def test_plain_torch_stays_on_the_cores_that_were_asked_for(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    with LLM(str(tiny_checkpoint("qwen3")), cpu_cores=str(core), device_memory="256MiB") as llm:
        llm.generate(["a b c"], GREEDY, use_tqdm=False)
        (worker,) = [t for t in threading.enumerate() if t.name == "seesaw-worker"]
        assert worker.native_id is not None
        assert os.sched_getaffinity(worker.native_id) == {core}
        assert os.sched_getaffinity(0) == before
