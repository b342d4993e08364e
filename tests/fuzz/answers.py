"""The answer that each request must get, computed alone: tokens one by one, with their stops."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from seesaw.outputs import CompletionOutput
from seesaw.sampling_params import SamplingParams
from tests.fuzz.fake_rank import logprobs_of
from tests.fuzz.harness import text_of
from tests.fuzz.scenario import Asked, Scenario
from tests.scheduler.traces import EOS
from tests.scheduler.worker_model import serial_tokens

Ended = tuple[list[int], str, str, int | str | None]
"""Token ids, text, finish_reason, stop_reason."""


def seed_of(engine_seed: int, request_id: str, sampling: SamplingParams, index: int) -> int:
    """The rule that makes answers the same in every run: of the engine's docs, in other words."""
    own = f"{engine_seed}/{request_id}" if sampling.seed is None else str(sampling.seed)
    digest = hashlib.blake2b(f"{own}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def expected(scenario: Scenario, asked: Asked, index: int) -> Ended:
    """The answer number `index` of a request that is not aborted."""
    sampling = asked.sampling
    room = scenario.config.max_model_len - len(asked.prompt)
    limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
    seed = seed_of(scenario.engine_seed, asked.request_id, sampling, index)
    tokens = serial_tokens(asked.prompt, seed, scenario.vocab_size, limit)
    return cut(tokens, sampling)


def cut(tokens: Sequence[int], sampling: SamplingParams) -> Ended:
    """Where the first stop is, or at the end."""
    keeps_stop = sampling.include_stop_str_in_output
    for count, token in enumerate(tokens, 1):
        answer = list(tokens[:count])
        if count < sampling.min_tokens:
            continue
        is_eos = token == EOS and not sampling.ignore_eos
        if is_eos or token in sampling.stop_token_ids:
            shown = answer if keeps_stop else answer[:-1]
            text = text_of(shown)
            # The token may complete a stop string that is shown too.
            for stop in sampling.stop:
                if keeps_stop and text.endswith(stop):
                    return answer, text, "stop", stop
            return answer, text, "stop", None if is_eos else token
        text = text_of(answer)
        for stop in sampling.stop:
            if text.endswith(stop):
                return answer, text if keeps_stop else text[: -len(stop)], "stop", stop
    return list(tokens), text_of(tokens), "length", None


def check_answer(scenario: Scenario, asked: Asked, got: CompletionOutput) -> None:
    """Of a finished output; one that was aborted is the beginning of the right answer."""
    want = expected(scenario, asked, got.index)
    name = f"answer {got.index} of {asked.request_id}"
    if got.finish_reason == "abort":
        assert got.token_ids == want[0][: len(got.token_ids)], f"{name}, aborted: {got}, not {want}"
    else:
        found = (got.token_ids, got.text, got.finish_reason, got.stop_reason)
        assert found == want, f"{name}: {found}, expected {want}"
    count = asked.sampling.logprobs
    if count is None or asked.sampling.max_tokens == 0:
        assert got.logprobs is None, name
        return
    assert got.logprobs is not None, f"{name}: no log-probabilities"
    assert len(got.logprobs) == len(got.token_ids), f"{name}: {got.logprobs}"
    for token, entries in zip(got.token_ids, got.logprobs, strict=True):
        own = logprobs_of(token, count, scenario.vocab_size)
        assert entries[token].logprob == own.sampled, f"{name}: {entries} of token {token}"
        assert {token, *own.top_ids} == set(entries), f"{name}: {entries} of token {token}"
