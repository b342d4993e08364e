"""An engine without a model: answers are a function of prompt and sampling, faults come on order.

Faults are asked for by words in the prompt: `CRASH` kills the engine whenever the row is in
flight, `CRASH<n>` only for the first n engines, `REFUSE` is refused by add_request, `LOST` is
forgotten, `ERROR` comes back with an error.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seesaw.errors import EngineDeadError, RequestError
from seesaw.outputs import CompletionOutput, EngineStatus, Logprob, RequestOutput
from seesaw.sampling_params import SamplingParams

WORDS = ("ember", "flint", "grove", "haven", "inlet", "jetty", "knoll", "ledge", "mound", "notch")


class FakeEncoder:
    """One token per character."""

    max_model_len = 512

    def __init__(self, *, model_name: str = "fake", version: str = "1", **sampling: Any):
        self.model_name = model_name
        self.fingerprint = f"fake {version}"
        self.default_sampling: Mapping[str, Any] = sampling

    def check_sampling(self, sampling: SamplingParams) -> None:
        for token in sampling.stop_token_ids:
            if token >= 0x110000:
                raise RequestError(f"stop_token_ids holds {token}.", param="stop_token_ids")

    def encode_prompt(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            if "BADTEMPLATE" in prompt:
                raise KeyError("template")
            return [ord(c) for c in prompt]
        for token in prompt:
            if not 0 <= token < 0x110000:
                raise RequestError(f"token id {token}: expected 0 to 1114111.", param="prompt")
        return list(prompt)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        text = "".join(f"<{m['role']}>{m['content']}" for m in messages)
        return self.encode_prompt(text + "<assistant>")


class FakeEngine(FakeEncoder):
    """Finishes a request after a number of steps that its answer's length gives."""

    generation = 0  # engines made so far, for CRASH<n>

    def __init__(
        self,
        *,
        max_num_seqs: int = 8,
        step_s: float = 0.0,
        hook: Callable[[str], None] = lambda point: None,
        **encoder: Any,
    ):
        super().__init__(**encoder)
        hook("load")
        FakeEngine.generation += 1
        self.max_num_seqs = max_num_seqs
        self.max_num_queued = 2 * max_num_seqs
        self.most_admitted = 0
        self._step_s = step_s
        self._hook = hook
        self._live: dict[str, tuple[list[int], SamplingParams, int]] = {}
        self.num_shutdowns = 0
        self.num_finished = 0

    def add_request(
        self, request_id: str, prompt_token_ids: Sequence[int], sampling: SamplingParams
    ) -> None:
        text = "".join(map(chr, prompt_token_ids))
        if "REFUSE" in text:
            raise RequestError("refused by the engine.", code="refused")
        assert request_id not in self._live, "the job admitted a row twice"
        assert sampling.seed is not None, "the job gives every row a seed"
        length = 1 + int.from_bytes(hashlib.blake2b(text.encode()).digest()[:2], "big") % 12
        self._live[request_id] = (list(prompt_token_ids), sampling, length)
        self.most_admitted = max(self.most_admitted, len(self._live))

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(
            phase="decode", layout="tp2", device_share=0.5, tier_share=0.25,
            num_begun=len(self._live), num_waiting=0, prompt_tokens=self.num_finished,
            decoded_tokens=self.num_finished, prefill_s=1.0, decode_s=2.0,
        )  # fmt: skip

    def abort_request(self, request_id: str) -> None:
        self._live.pop(request_id, None)

    def step(self) -> list[RequestOutput]:
        self._hook("step")
        time.sleep(self._step_s)
        done = []
        for request_id in list(self._live)[: self.max_num_seqs]:
            prompt, sampling, left = self._live[request_id]
            text = "".join(map(chr, prompt))
            if (order := re.search(r"CRASH(\d*)", text)) is not None and (
                not order[1] or self.generation <= int(order[1])
            ):
                raise EngineDeadError("the fake engine was told to crash")
            if "BUG" in text:
                raise ZeroDivisionError("a bug in the engine")
            if "LOST" in text:
                del self._live[request_id]
                continue
            self._live[request_id] = (prompt, sampling, left - 1)
            if left <= 1:
                del self._live[request_id]
                self.num_finished += 1
                done.append(answer(request_id, prompt, sampling))
        return done

    def has_unfinished_requests(self) -> bool:
        return bool(self._live)

    def shutdown(self) -> None:
        self._live.clear()
        self.num_shutdowns += 1


def answer(request_id: str, prompt: list[int], sampling: SamplingParams) -> RequestOutput:
    """What the fake engine says to a prompt, whoever asks and whenever."""
    text = "".join(map(chr, prompt))
    if "ERROR" in text:
        error = RequestError("the engine could not serve this.", code="engine_error")
        return RequestOutput(request_id, None, prompt, [], finished=True, error=error)
    outputs = []
    for index in range(sampling.n):
        seed = f"{prompt} {sampling.temperature} {sampling.seed} {index}"
        draws = hashlib.blake2b(seed.encode()).digest()
        most = len(draws) if sampling.max_tokens is None else sampling.max_tokens
        length = min(4 + draws[0] % 20, most)
        ids = [d % len(WORDS) for d in draws[:length]]
        logprobs = None
        if sampling.logprobs is not None:
            logprobs = [logprobs_of(token, sampling.logprobs) for token in ids]
        outputs.append(
            CompletionOutput(
                index,
                " ".join(WORDS[i] for i in ids),
                ids,
                logprobs=logprobs,
                finish_reason="length" if length == most else "stop",
            )
        )
    return RequestOutput(request_id, None, prompt, outputs, finished=True, num_cached_tokens=1)


def logprobs_of(token: int, num_top: int) -> dict[int, Logprob]:
    """The drawn token is always the second most probable; the last one is impossible."""
    ranked = [(token + 1) % len(WORDS), token, (token + 2) % len(WORDS)]
    values = [-0.5, -1.5, float("-inf")]
    entries = {
        t: Logprob(v, rank, WORDS[t] + " ")
        for rank, (t, v) in enumerate(zip(ranked, values, strict=True), 1)
    }
    return {t: lp for t, lp in entries.items() if t == token or (lp.rank or 0) <= num_top}
