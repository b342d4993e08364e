"""Requests and arguments no engine can serve: one message each, and the engine goes on."""

from __future__ import annotations

import pytest

from seesaw import LLM, ConfigError, RequestError, SamplingParams

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
