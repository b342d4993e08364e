"""`LLM` and `Engine` as their users meet them, over a tiny checkpoint."""

from __future__ import annotations

import gc
import itertools
import os
import threading
from pathlib import Path

import pytest
import torch

from seesaw import LLM, ConfigError, Engine, EngineConfig, EngineDeadError, RequestError
from seesaw.engine.model_runner import ModelRunner
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.policies.continuous import Continuous

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SETTINGS = {"dtype": "float32", "device_memory": "1GiB", "max_num_seqs": 8}


@pytest.fixture(scope="module", autouse=True)
def on_the_device_under_test(device):
    SETTINGS["device"] = device


@pytest.fixture(scope="module")
def path(tiny_checkpoint):
    return str(tiny_checkpoint("llama"))


@pytest.fixture(scope="module")
def llm(path):
    with LLM(path, **SETTINGS) as made:
        yield made


def run_to_the_end(engine):
    while engine.has_unfinished_requests():
        engine.step()


def ids(outputs):
    return [output.outputs[0].token_ids for output in outputs]


def test_prompts_in_any_form(llm):
    text = "The quick brown fox"
    token_ids = llm.get_tokenizer().encode(text)
    forms = [text, token_ids, {"prompt": text}, {"prompt_token_ids": token_ids}]
    outputs = llm.generate(forms, GREEDY, use_tqdm=False)
    assert len({tuple(o.outputs[0].token_ids) for o in outputs}) == 1
    assert outputs[0].prompt == text
    assert outputs[1].prompt is None
    assert outputs[0].prompt_token_ids == token_ids
    assert len(llm.generate(token_ids, GREEDY, use_tqdm=False)) == 1
    assert llm.generate([], GREEDY, use_tqdm=False) == []


def test_chat_goes_through_the_template(llm):
    messages = [{"role": "user", "content": "Who runs?"}]
    (one,) = llm.chat(messages, GREEDY, use_tqdm=False)
    assert one.prompt == "<|im_start|>user\nWho runs?<|im_end|>\n<|im_start|>assistant\n"
    assert len(llm.chat([messages, messages], GREEDY, use_tqdm=False)) == 2


def test_defaults_come_from_generation_config(llm):
    assert llm.get_default_sampling_params().temperature == pytest.approx(0.7)
    assert llm.get_default_sampling_params().max_tokens is None


def test_one_sampling_params_each(llm):
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (0, 1, 5)]
    outputs = llm.generate(["a b c"] * 3, params, use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [0, 1, 5]
    assert {o.outputs[0].finish_reason for o in outputs} == {"length"}
    with pytest.raises(ConfigError, match="2 sampling_params for 3 prompts"):
        llm.generate(["a"] * 3, params[:2], use_tqdm=False)


def test_max_tokens_none_goes_to_the_context_limit(path):
    with LLM(path, **SETTINGS, max_model_len=50) as llm:
        prompt = [5] * 10
        sampling = SamplingParams(temperature=0, ignore_eos=True)
        (output,) = llm.generate([prompt], sampling, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 40
    assert output.outputs[0].finish_reason == "length"


def test_seeds_fix_draws_whatever_runs_beside_them(llm, path):
    hot = SamplingParams(temperature=1.5, max_tokens=20, seed=7, ignore_eos=True)
    (alone,) = llm.generate(["The dog"], hot, use_tqdm=False)
    crowd = [SamplingParams(temperature=1.5, max_tokens=30, ignore_eos=True)] * 9
    among = llm.generate(["The dog"] * 10, [hot, *crowd], use_tqdm=False)
    assert ids(among)[0] == ids([alone])[0]
    assert len({tuple(i) for i in ids(among)}) > 1, "unseeded draws differ from each other"
    with LLM(path, **SETTINGS) as again:
        first = again.generate(["The dog"] * 3, crowd[:3], use_tqdm=False)
    with LLM(path, **SETTINGS) as again:
        second = again.generate(["The dog"] * 3, crowd[:3], use_tqdm=False)
    with LLM(path, **SETTINGS, seed=1) as other:
        third = other.generate(["The dog"] * 3, crowd[:3], use_tqdm=False)
    assert ids(first) == ids(second) != ids(third)


def test_n_answers_differ_and_share_the_prompt(llm):
    sampling = SamplingParams(temperature=1.2, n=4, max_tokens=16, seed=3, ignore_eos=True)
    (output,) = llm.generate([[7] * 100], sampling, use_tqdm=False)
    assert [answer.index for answer in output.outputs] == [0, 1, 2, 3]
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 4


def test_prefix_sharing_is_reported(path):
    with LLM(path, **SETTINGS, block_size=16) as llm:
        prompt = list(range(10, 60))
        first, second = (llm.generate([prompt], GREEDY, use_tqdm=False)[0] for _ in range(2))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 48)
    assert first.outputs == second.outputs


def test_stop_string_ends_and_cuts(llm):
    (whole,) = llm.generate(["The dog"], GREEDY, use_tqdm=False)
    text = whole.outputs[0].text
    stop = text[len(text) // 2 :][:3]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=stop)
    (cut,) = llm.generate(["The dog"], params, use_tqdm=False)
    assert cut.outputs[0].text == text[: text.index(stop)]
    assert (cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("stop", stop)


def test_stop_token_and_min_tokens(llm):
    whole = ids(llm.generate(["The dog"], GREEDY, use_tqdm=False))[0]
    params = {"temperature": 0, "max_tokens": 12, "stop_token_ids": [whole[3]], "ignore_eos": True}
    (cut,) = llm.generate(["The dog"], SamplingParams(**params), use_tqdm=False)
    assert cut.outputs[0].token_ids == whole[: whole.index(whole[3]) + 1]
    assert cut.outputs[0].stop_reason == whole[3]
    (longer,) = llm.generate(["The dog"], SamplingParams(**params, min_tokens=9), use_tqdm=False)
    assert whole[3] not in longer.outputs[0].token_ids[:9]
    assert len(longer.outputs[0].token_ids) >= 9


def test_logit_bias_and_penalties_change_what_is_drawn(llm):
    whole = ids(llm.generate(["The dog"], GREEDY, use_tqdm=False))[0]
    biased = SamplingParams(temperature=0, max_tokens=5, logit_bias={77: 100}, ignore_eos=True)
    assert ids(llm.generate(["The dog"], biased, use_tqdm=False))[0] == [77] * 5
    # With the same bias, a penalty per occurrence lets other tokens win in the end.
    both = SamplingParams(
        temperature=0, max_tokens=200, logit_bias={77: 100}, frequency_penalty=2, ignore_eos=True
    )
    drawn = ids(llm.generate(["The dog"], both, use_tqdm=False))[0]
    assert drawn[:3] == [77] * 3
    assert len(set(drawn)) > 1
    banned = SamplingParams(temperature=0, max_tokens=1, logit_bias={whole[0]: -100})
    assert ids(llm.generate(["The dog"], banned, use_tqdm=False))[0] != whole[:1]


def test_logprobs_are_of_the_raw_distribution(llm):
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, ignore_eos=True)
    (output,) = llm.generate(["The dog"], params, use_tqdm=False)
    answer = output.outputs[0]
    for token, entry in zip(answer.token_ids, answer.logprobs, strict=True):
        assert len(entry) == 3
        assert entry[token].rank == 1
        assert entry[token].logprob == max(e.logprob for e in entry.values())
    assert answer.cumulative_logprob == pytest.approx(
        sum(e[t].logprob for t, e in zip(answer.token_ids, answer.logprobs, strict=True))
    )
    without = SamplingParams(temperature=0, max_tokens=4, logprobs=0, ignore_eos=True)
    assert len(llm.generate(["The dog"], without, use_tqdm=False)[0].outputs[0].logprobs[0]) == 1


def test_bad_prompts_raise_before_anything_runs_or_fail_alone(llm):
    before = llm.engine.stats.scheduler.num_steps
    with pytest.raises(RequestError, match="empty"):
        llm.generate(["fine", ""], GREEDY, use_tqdm=False)
    assert llm.engine.stats.scheduler.num_steps == before
    batch = ["fine", "", [5] * 5000, [320], {"text": "x"}, 3.5, ["a"]]
    outputs = llm.generate(batch, GREEDY, use_tqdm=False, on_error="return")
    assert outputs[0].error is None
    messages = [str(output.error) for output in outputs[1:]]
    for message, words in zip(
        messages,
        ("empty", "5000 tokens", "expected token ids from 0 to 319", "text", "float", "'a'"),
        strict=True,
    ):
        assert words in message


def test_unknown_argument_is_refused_with_the_nearest(path):
    with pytest.raises(ConfigError, match=r"max_num_seq'.*Did you mean 'max_num_seqs'"):
        LLM(path, max_num_seq=3)
    with pytest.raises(ConfigError, match=r"go into policy_options=\{'token_budget': \.\.\}"):
        LLM(path, policy="sarathi-serve", token_budget=64)


def test_tensor_parallel_size_is_the_layout_of_both_phases(llm, path, device):
    pytest.importorskip("zmq")
    pytest.importorskip("msgspec")
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    prompts = [[5, 6, 7 + i] for i in range(4)]
    expected = [o.outputs[0].token_ids for o in llm.generate(prompts, GREEDY, use_tqdm=False)]
    with LLM(path, tensor_parallel_size=2, **SETTINGS) as two:
        assert str(two.engine.layouts.decode) == "dp1-tp2-pp1"
        found = [o.outputs[0].token_ids for o in two.generate(prompts, GREEDY, use_tqdm=False)]
    assert found == expected


def test_stream_takes_prompts_as_there_is_room(llm):
    taken = []

    def source():
        for number in range(60):
            taken.append(number)
            yield [5 + number, 6]

    stream = llm.stream(source(), GREEDY)
    next(stream)
    assert len(taken) <= 2 * SETTINGS["max_num_seqs"]
    assert len(list(stream)) == 59


def test_stream_in_order_equals_generate(llm):
    lengths = [30, 1, 9, 2, 17]
    prompts = [[5 + n, 6] for n in range(40)]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths] * 8
    expected = ids(llm.generate(prompts, params, use_tqdm=False))
    streamed = llm.stream(prompts, GREEDY, ordered=True)
    assert [o.outputs[0].token_ids[:1] for o in streamed] == [e[:1] for e in expected]


def test_leaving_a_stream_aborts_what_runs(llm):
    endless = SamplingParams(temperature=0, ignore_eos=True, max_tokens=400)
    quick = SamplingParams(temperature=0, max_tokens=1)
    for _ in llm.stream(([7, n + 4] for n in range(300)), quick):
        break
    stream = llm.stream([[9]] * 5, endless)
    stream.close()
    assert not llm.engine.has_unfinished_requests()
    assert ids(llm.generate(["The dog"], GREEDY, use_tqdm=False))


def test_two_streams_side_by_side_get_their_own_answers(llm):
    prompts = [[[4 + n] for n in range(20)], [[60 + n] for n in range(20)]]
    streams = [llm.stream(p, GREEDY, ordered=True) for p in prompts]
    pairs = list(zip(*streams, strict=True))
    for side in (0, 1):
        assert [pair[side].prompt_token_ids for pair in pairs] == prompts[side]


def test_threads_add_and_abort_while_another_steps(path):
    with Engine(EngineConfig(model=path, **SETTINGS)) as engine:
        endless = SamplingParams(temperature=0, ignore_eos=True, max_tokens=450)

        def add(who):
            for number in range(20):
                engine.add_request(f"{who}-{number}", [5, 6], GREEDY)
                engine.add_request(f"{who}-{number}-long", [5, 6], endless)
                engine.abort_request(f"{who}-{number}-long")

        threads = [threading.Thread(target=add, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        outputs = {}
        while any(t.is_alive() for t in threads) or engine.has_unfinished_requests():
            outputs |= {output.request_id: output for output in engine.step()}
        for thread in threads:
            thread.join()
    assert len(outputs) == 160
    short = [o for name, o in outputs.items() if not name.endswith("long")]
    assert {o.outputs[0].finish_reason for o in short} == {"length"}
    long = [o for name, o in outputs.items() if name.endswith("long")]
    assert {o.outputs[0].finish_reason for o in long} <= {"abort", "length"}


def test_an_id_in_use_is_refused(path):
    with Engine(EngineConfig(model=path, **SETTINGS)) as engine:
        engine.add_request("a", [5], GREEDY)
        with pytest.raises(RequestError, match="'a' is in use"):
            engine.add_request("a", [5], GREEDY)
        run_to_the_end(engine)
        for _ in range(5):  # used again as soon as it is free, with steps still in flight
            engine.add_request("a", [5], SamplingParams(temperature=0, max_tokens=3))
            run_to_the_end(engine)


class FailingPolicy(Continuous):
    """Plans well until the third step."""

    calls = 0

    def plan(self, step):
        self.calls += 1
        if self.calls == 3:
            raise LookupError("a test's doing")
        super().plan(step)


def test_a_policy_that_fails_kills_the_engine_with_its_cause(path):
    policy = f"{__name__}:FailingPolicy"
    with Engine(EngineConfig(model=path, **SETTINGS, policy=policy)) as engine:
        engine.add_request("a", [5], GREEDY)
        with pytest.raises(EngineDeadError, match="LookupError: a test's doing") as died:
            run_to_the_end(engine)
        # A command prints no traceback: whoever wrote the policy finds it in the dump.
        dumped = Path(str(died.value).rpartition(" is in ")[2]).read_text()
        assert f'{Path(__file__).name}", line' in dumped
        assert 'raise LookupError("a test\'s doing")' in dumped
        with pytest.raises(EngineDeadError, match="dead"):
            engine.step()


def test_growing_outputs_where_asked_for(path):
    with Engine(EngineConfig(model=path, **SETTINGS)) as engine:
        engine.add_request("s", "The dog", GREEDY, stream=True)
        texts = []
        while engine.has_unfinished_requests():
            texts += [output.outputs[0].text for output in engine.step()]
    assert len(texts) >= 12
    for earlier, later in itertools.pairwise(texts):
        assert later.startswith(earlier)


def test_a_step_that_fails_kills_the_engine_with_its_cause(path, monkeypatch):
    with Engine(EngineConfig(model=path, **SETTINGS)) as engine:
        engine.add_request("a", [5], GREEDY)
        engine.step()

        def fail(self, step):
            raise ZeroDivisionError("a test's doing")

        monkeypatch.setattr(ModelRunner, "begin", fail)
        with pytest.raises(EngineDeadError, match="ZeroDivisionError: a test's doing"):
            run_to_the_end(engine)
        with pytest.raises(EngineDeadError, match="dead"):
            engine.add_request("b", [5], GREEDY)
    with pytest.raises(EngineDeadError, match="shut down"):
        engine.step()


def test_the_next_step_is_issued_before_one_ends(path, monkeypatch):
    """The worker is held in its first decode step: the engine has handed over the next by then."""
    submitted, seen = [], []
    released = threading.Event()
    begin = ModelRunner.begin

    def slow(self, step):
        if step.step_id == 1:
            released.wait(30)
        seen.append((step.step_id, len(submitted)))
        return begin(self, step)

    monkeypatch.setattr(ModelRunner, "begin", slow)
    with Engine(EngineConfig(model=path, **SETTINGS)) as engine:
        executor = engine._replicas._executor
        submit = executor.submit

        def record(step, replica=0):
            submitted.append(step.step_id)
            if step.step_id == 2:
                released.set()
            submit(step, replica)

        monkeypatch.setattr(executor, "submit", record)
        engine.add_request("a", [5, 6, 7], GREEDY)
        while engine.has_unfinished_requests():
            engine.step()
    assert dict(seen)[1] >= 3, "steps 0, 1 and 2 were submitted before step 1 ended"


def test_shutdown_frees_everything(tiny_checkpoint):
    """Ten engines one after another take no more memory than one; threads end."""
    path = str(tiny_checkpoint("llama", hidden_size=512, intermediate_size=2048, vocab_size=8192))

    def rss():
        gc.collect()
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cycle():
        with LLM(path, **SETTINGS) as llm:
            llm.generate([[5] * 60] * 8, GREEDY, use_tqdm=False)
            return llm.engine.memory_plan.arena_bytes

    weight_bytes = cycle()
    cycle()
    threads, before = threading.active_count(), rss()
    for _ in range(8):
        cycle()
    assert threading.active_count() == threads
    assert rss() - before < weight_bytes, "eight more engines left less than one model behind"
