"""When requests come and when their tokens are known, by the engine's own clock."""

from __future__ import annotations

import time

import pytest

from seesaw import Engine, EngineConfig, RequestError
from seesaw.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SETTINGS = {"dtype": "float32", "device_memory": "1GiB", "max_num_seqs": 8}


@pytest.fixture(scope="module", autouse=True)
def on_the_device_under_test(device):
    SETTINGS["device"] = device


@pytest.fixture(scope="module")
def path(tiny_checkpoint):
    return str(tiny_checkpoint("llama"))


def test_metrics_count_from_when_a_request_came(path):
    with Engine(EngineConfig(model=path, **SETTINGS)) as engine:
        came_s = time.perf_counter() - 5.0
        two = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, n=2)
        engine.add_request("a", [1, 2, 3], two, arrival_s=came_s, times_tokens=True)
        engine.add_request("b", [1, 2, 3], GREEDY)
        found = {}
        while engine.has_unfinished_requests():
            found.update((output.request_id, output) for output in engine.step())
        metrics = found["a"].metrics
        assert metrics.arrival_s == came_s
        assert came_s + 5 <= metrics.scheduled_s <= metrics.first_token_s <= metrics.finished_s
        for answer in found["a"].outputs:
            assert len(answer.token_s) == 4
            assert answer.token_s == sorted(answer.token_s)
            assert metrics.first_token_s <= answer.token_s[0]
            assert answer.token_s[-1] <= metrics.finished_s
        assert found["a"].outputs[0].token_s[0] == metrics.first_token_s
        assert found["b"].outputs[0].token_s is None
        assert found["b"].metrics.arrival_s > came_s + 5
        for wrong_s in (time.perf_counter() + 60, float("nan"), float("-inf")):
            with pytest.raises(RequestError, match="up to now"):
                engine.add_request("c", [1, 2, 3], GREEDY, arrival_s=wrong_s)
        engine.add_request("c", [1, 2, 3], SamplingParams(max_tokens=0), times_tokens=True)
        (empty,) = engine.step()
        assert empty.outputs[0].token_s == []


def test_what_comes_while_a_step_runs_is_in_the_next_one_that_is_planned(path, monkeypatch):
    with Engine(EngineConfig(model=path, **SETTINGS)) as engine:
        engine.add_request("a", [1, 2, 3], GREEDY)
        collect = engine._replicas.collect

        def collect_and_add():
            if not engine.status.num_waiting and "b" not in engine._live:
                engine.add_request("b", [4, 5], GREEDY)
            return collect()

        monkeypatch.setattr(engine._replicas, "collect", collect_and_add)
        engine.step()
        assert (engine.status.num_begun, engine.status.num_waiting) == (2, 0)
        while engine.has_unfinished_requests():
            engine.step()
