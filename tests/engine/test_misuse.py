"""Requests and arguments no engine can serve: one message each, and the engine goes on."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from seesaw import LLM, ConfigError, Engine, EngineConfig, EngineDeadError, RequestError
from seesaw.engine.prompts import PromptEncoder
from seesaw.errors import ModelError
from seesaw.sampling_params import SamplingParams
from seesaw.weights.checkpoint import open_checkpoint

SETTINGS = {"dtype": "float32", "device_memory": "256MiB", "max_num_seqs": 4}
SHORT = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tiny_checkpoint):
    return tiny_checkpoint("llama")


@pytest.fixture(scope="module")
def llm(path):
    with LLM(path, **SETTINGS) as made:
        yield made


def answer(llm, **sampling):
    params = SamplingParams(**{"max_tokens": 4, "ignore_eos": True, "seed": 5, **sampling})
    (output,) = llm.generate(["The dog"], params, use_tqdm=False)
    return output.outputs[0].token_ids


def test_numbers_beyond_any_tensor_do_not_harm_the_engine(llm):
    plain = answer(llm)
    assert answer(llm, top_k=10**30) == plain
    assert answer(llm, max_tokens=10**30)[:4] == plain
    assert answer(llm, max_tokens=None, min_tokens=10**30)[:4] == plain
    for extreme in (
        {"repetition_penalty": 1e-45},
        {"temperature": 1.1e-5, "repetition_penalty": 1e-38},
        {"top_p": 1e-300},
        {"stop_token_ids": list(range(320)), "min_tokens": 4},
    ):
        assert len(answer(llm, **extreme)) == 4
    assert answer(llm) == plain


class Word(str):
    """As a library may return it."""


def test_numbers_of_any_kind_and_size_reach_worker_processes(llm, path):
    with LLM(path, tensor_parallel_size=2, **SETTINGS) as ranks:
        for sampling in (
            {"top_k": 10**30},
            {"max_tokens": None, "min_tokens": 10**30},
            {"temperature": np.float64(0.5), "top_p": np.float64(0.9), "seed": 2**64 - 1},
            {"logit_bias": {5: np.float64(2)}, "stop": [Word("\n")], "seed": -(2**63)},
        ):
            assert answer(ranks, **sampling) == answer(llm, **sampling), sampling


def test_a_stop_string_that_is_half_a_character_is_refused():
    with pytest.raises(RequestError, match="valid Unicode"):
        SamplingParams(stop=["fine", "\ud83d"])


@pytest.mark.parametrize("given", [{"temperature": 0}, "greedy", 5, [{"temperature": 0}]])
def test_what_is_no_sampling_params_is_refused(llm, given):
    with pytest.raises(ConfigError, match="expected SamplingParams"):
        llm.generate(["a"], given, use_tqdm=False)
    with pytest.raises(ConfigError, match="expected SamplingParams"):
        llm.stream(["a"], given)


@pytest.mark.parametrize("given", [b"abc", None, 5])
def test_what_is_no_batch_of_prompts_is_refused(llm, given):
    with pytest.raises(ConfigError, match="expected text, token ids or a list"):
        llm.generate(given, SHORT, use_tqdm=False)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": 5}, "messages is int"),
        ({"messages": "hello"}, "messages is str"),
        ({"messages": ["hello"]}, r"messages\[0\]: got str"),
        ({"prompt_token_ids": "abc"}, "expected token ids"),
        ({"prompt_token_ids": None}, "NoneType"),
        ({"prompt": "a", "messages": []}, "exactly one of"),
        ({}, "exactly one of"),
    ],
)
def test_prompts_of_no_known_form_are_refused(llm, prompt, words):
    with pytest.raises(RequestError, match=words):
        llm.generate([prompt], SHORT, use_tqdm=False)


def test_a_source_of_prompts_that_fails_ends_its_stream_only(llm):
    def source():
        yield "a"
        yield "b"
        raise LookupError("a test's doing")

    with pytest.raises(LookupError, match="a test's doing"):
        list(llm.stream(source(), SHORT))
    assert not llm.engine.has_unfinished_requests()
    assert len(answer(llm)) == 4


def test_prompts_up_to_the_limit(llm):
    endless = SamplingParams(temperature=0, ignore_eos=True)
    longest = llm.engine.max_model_len
    (output,) = llm.generate([[5] * (longest - 1)], endless, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 1
    with pytest.raises(RequestError, match=f"allows {longest - 1}"):
        llm.generate([[5] * longest], endless, use_tqdm=False)


def test_threads_that_share_an_engine_get_their_own_answers(llm):
    batches = [[[4 + n, 50 + who] for n in range(12)] for who in range(4)]
    params = [SamplingParams(temperature=0, max_tokens=1 + n, ignore_eos=True) for n in range(12)]

    def ask(prompts):
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [(o.prompt_token_ids, o.outputs[0].token_ids) for o in outputs]

    alone = [ask(batch) for batch in batches]
    with ThreadPoolExecutor(len(batches)) as pool:
        assert list(pool.map(ask, batches)) == alone
    assert not llm.engine.has_unfinished_requests()


def interrupt_once(monkeypatch, owner, name):
    """The next call of `owner.name` raises what Ctrl-C does; later ones work."""
    calls = []
    original = getattr(owner, name)

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(owner, name, interrupted)


def test_an_interruption_while_the_device_works_leaves_the_engine_usable(path, monkeypatch):
    with LLM(path, **SETTINGS) as llm:
        before = answer(llm)
        interrupt_once(monkeypatch, llm.engine._replicas._executor, "collect")
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["a b c"] * 20, SamplingParams(max_tokens=50), use_tqdm=False)
        assert not llm.engine.has_unfinished_requests()
        assert answer(llm) == before


def test_what_ended_before_an_interruption_is_returned_by_the_next_step(path, monkeypatch):
    with Engine(EngineConfig(model=path, **SETTINGS)) as engine:
        engine.add_request("runs", [5, 6], SHORT)
        engine.add_request("empty", [5, 6], SamplingParams(max_tokens=0))
        interrupt_once(monkeypatch, engine._replicas._executor, "collect")
        with pytest.raises(KeyboardInterrupt):
            engine.step()
        outputs = []
        while engine.has_unfinished_requests():
            outputs += engine.step()
    assert sorted(output.request_id for output in outputs) == ["empty", "runs"]


def test_an_interruption_halfway_through_a_plan_ends_the_engine_by_name(path, monkeypatch):
    with LLM(path, **SETTINGS) as llm:
        interrupt_once(monkeypatch, llm.engine._replicas.schedulers[0], "update")
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["a"], SHORT, use_tqdm=False)
        with pytest.raises(EngineDeadError, match="cut off by KeyboardInterrupt"):
            llm.generate(["a"], SHORT, use_tqdm=False)


def test_an_abort_that_comes_too_late_does_not_hit_the_next_request_of_that_id(path, monkeypatch):
    with Engine(EngineConfig(model=path, **SETTINGS)) as engine:
        engine.add_request("a", [5, 6], SHORT)
        process = engine._processor.process

        def abort_as_it_ends(*args):
            outputs = process(*args)
            if outputs:
                engine.abort_request("a")  # as another thread may, just then
            return outputs

        monkeypatch.setattr(engine._processor, "process", abort_as_it_ends)
        while engine.has_unfinished_requests():
            engine.step()
        monkeypatch.undo()
        engine.add_request("a", [5, 6], SHORT)
        outputs = []
        while engine.has_unfinished_requests():
            outputs += engine.step()
    assert [output.outputs[0].finish_reason for output in outputs] == ["length"]


@pytest.mark.parametrize(
    "settings", [{"temperature": "hot"}, {"top_k": 2.5}, {"max_new_tokens": -1}, {"top_p": 7}]
)
def test_sampling_defaults_that_no_request_could_have_are_told_before_loading(
    path, tmp_path, settings
):
    copy = tmp_path / "model"
    shutil.copytree(path, copy)
    (copy / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"sampling defaults.*expected.*generation_config\.json"):
        LLM(copy, **SETTINGS)


def test_a_limit_beyond_the_model_is_told_without_an_engine(path):
    config = EngineConfig(model=str(path), max_model_len=513)
    with pytest.raises(ConfigError, match="positions end at 512"):
        PromptEncoder(config, open_checkpoint(config))


def test_shutdown_waits_for_a_step_of_another_thread(path):
    engine = Engine(EngineConfig(model=path, **SETTINGS))
    for index in range(4):
        engine.add_request(str(index), [5, 6, 7], SamplingParams(max_tokens=200, ignore_eos=True))
    stepping = threading.Event()
    ended: list[BaseException] = []

    def work():
        try:
            while True:
                engine.step()
                stepping.set()
        except EngineDeadError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert stepping.wait(30)
    engine.shutdown()
    thread.join(30)
    assert not thread.is_alive()
    assert "shut down" in str(ended[0])


def test_a_request_id_that_is_no_unicode_is_refused(path):
    with Engine(EngineConfig(model=path, **SETTINGS)) as engine:
        with pytest.raises(RequestError, match="no valid Unicode"):
            engine.add_request("a\ud800", [5, 6], SHORT)
        assert not engine.has_unfinished_requests()
