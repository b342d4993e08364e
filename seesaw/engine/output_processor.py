"""The response merger: drawn tokens become texts, stop strings end them, siblings come together.

A caller's request with `n` answers is `n` requests to the scheduler. Nothing here decides what
runs; where a stop string appears the scheduler is told to end that request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from seesaw.outputs import CompletionOutput, FinishReason, Logprob, RequestMetrics, RequestOutput
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import TokenLogprobs
from seesaw.scheduler.request import Request
from seesaw.tokenizer import Detokenizer


class TextDecoder(Protocol):
    """The half of a tokenizer that makes text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer: ...


FinishRequest = Callable[[str, FinishReason, str], object]
"""`Scheduler.finish`: request id, reason, stop string."""


@dataclass(slots=True)
class _Answer:
    """One scheduler request on its way to a CompletionOutput."""

    group: _Group
    index: int
    request: Request
    detokenizer: Detokenizer | None
    """Only where the text is needed before the end."""
    text: str = ""
    num_read: int = 0
    token_s: list[float] | None = None
    """When each token was known, where the caller wants to know."""
    done: bool = False
    stop: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer: none drawn past a stop string."""
        return self.request.num_output_tokens if self.stop is None else self.num_read

    @property
    def num_text_tokens(self) -> int:
        """Tokens that make text: a token that ended the answer does not, unless asked for."""
        request = self.request
        by_token = request.finish_reason == "stop" and self.stop is None
        hidden = by_token and not request.sampling.include_stop_str_in_output
        return self.num_tokens - hidden

    def read(self) -> None:
        """Detokenise what is new; where a stop string appears, cut the text and set `stop`."""
        assert self.detokenizer is not None, "this answer is decoded at its end"
        request = self.request
        while self.num_read < self.num_text_tokens:
            piece = self.detokenizer.push(request.tokens[request.num_prompt + self.num_read])
            self.num_read += 1
            if piece and self._append(piece):
                return
        if request.finish_reason is not None:
            self._append(self.detokenizer.flush())

    def _append(self, piece: str) -> bool:
        before = len(self.text)
        self.text += piece
        sampling = self.request.sampling
        if self.num_read < sampling.min_tokens:
            return False
        found = [
            (at, stop)
            for stop in sampling.stop
            if (at := self.text.find(stop, max(0, before - len(stop) + 1))) >= 0
        ]
        if not found:
            return False
        at, self.stop = min(found)
        self.text = self.text[: at + len(self.stop) * sampling.include_stop_str_in_output]
        return True

    @property
    def visible_text(self) -> str:
        """The text without a tail that may turn out to be the beginning of a stop string."""
        sampling = self.request.sampling
        if self.done or not sampling.stop or sampling.include_stop_str_in_output:
            return self.text
        return self.text[: max(0, len(self.text) - max(map(len, sampling.stop)) + 1)]


@dataclass(slots=True)
class _Group:
    """One caller's request: its `n` answers."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    sampling: SamplingParams
    stream: bool
    metrics: RequestMetrics
    answers: list[_Answer] = field(default_factory=list)


class OutputProcessor:
    def __init__(self, tokenizer: TextDecoder) -> None:
        self._tokenizer = tokenizer
        self._groups: dict[str, _Group] = {}
        self._answers: dict[str, _Answer] = {}

    def add(
        self,
        request_id: str,
        prompt: str | None,
        requests: Sequence[Request],
        *,
        stream: bool,
        times_tokens: bool = False,
    ) -> None:
        """Expect the answers of `requests`, which share prompt, sampling and arrival."""
        first, sampling = requests[0], requests[0].sampling
        group = _Group(
            request_id,
            prompt,
            first.tokens[: first.num_prompt],
            sampling,
            stream,
            RequestMetrics(first.arrival_s),
        )
        self._groups[request_id] = group
        for index, request in enumerate(requests):
            detokenizer = None
            if sampling.detokenize and (stream or sampling.stop):
                detokenizer = self._tokenizer.detokenizer(
                    skip_special_tokens=sampling.skip_special_tokens
                )
            answer = _Answer(group, index, request, detokenizer)
            answer.token_s = [] if times_tokens else None
            group.answers.append(answer)
            self._answers[request.request_id] = answer

    def running(self, request_id: str) -> list[str]:
        """Ids of the scheduler requests still running for a caller's; empty if it is unknown."""
        group = self._groups.get(request_id)
        return [a.request.request_id for a in group.answers if not a.done] if group else []

    def begun(self, request_ids: Iterable[str]) -> None:
        """Steps with the first rows of these scheduler requests were handed over just now."""
        now_s = time.perf_counter()
        for request_id in request_ids:
            answer = self._answers.get(request_id)
            if answer is not None and answer.group.metrics.scheduled_s is None:
                answer.group.metrics.scheduled_s = now_s

    def process(self, changed: Iterable[Request], finish: FinishRequest) -> list[RequestOutput]:
        """Outputs of requests that ended, and of streaming ones that grew.

        `changed`: requests with new tokens and requests that ended.
        """
        touched: dict[str, _Group] = {}
        now_s = time.perf_counter()
        for request in changed:
            answer = self._answers.get(request.request_id)
            if answer is None:
                continue
            group = answer.group
            if group.metrics.first_token_s is None and request.num_output_tokens:
                group.metrics.first_token_s = now_s
            if (token_s := answer.token_s) is not None:
                token_s += [now_s] * (request.num_output_tokens - len(token_s))
            if answer.detokenizer is not None:
                answer.read()
                if answer.stop is not None:
                    finish(request.request_id, "stop", answer.stop)
            if request.finish_reason is not None:
                answer.done = True
                del self._answers[request.request_id]
                touched[group.request_id] = group
            elif group.stream:
                touched[group.request_id] = group
        return [output for group in touched.values() if (output := self._collect(group))]

    def _collect(self, group: _Group) -> RequestOutput | None:
        finished = all(answer.done for answer in group.answers)
        if finished:
            del self._groups[group.request_id]
            group.metrics.finished_s = time.perf_counter()
        elif not group.stream:
            return None
        return RequestOutput(
            request_id=group.request_id,
            prompt=group.prompt,
            prompt_token_ids=group.prompt_token_ids,
            outputs=[self._completion(answer) for answer in group.answers],
            finished=finished,
            metrics=group.metrics,
            num_cached_tokens=group.answers[0].request.num_cached_tokens,
        )

    def _completion(self, answer: _Answer) -> CompletionOutput:
        request, sampling = answer.request, answer.request.sampling
        token_ids = request.output_token_ids[: answer.num_tokens]
        if answer.detokenizer is not None:
            text = answer.visible_text
        elif sampling.detokenize:
            text = self._tokenizer.decode(
                token_ids[: answer.num_text_tokens],
                skip_special_tokens=sampling.skip_special_tokens,
            )
        else:
            text = ""
        completion = CompletionOutput(answer.index, text, token_ids)
        if answer.token_s is not None:
            completion.token_s = answer.token_s[: answer.num_tokens]
        if answer.done:
            by_string = answer.stop is not None
            completion.finish_reason = "stop" if by_string else request.finish_reason
            completion.stop_reason = answer.stop if by_string else request.stop_reason
        if request.logprobs is not None:
            entries = request.logprobs[: answer.num_tokens]
            completion.logprobs = [
                self._logprobs(token, entry)
                for token, entry in zip(token_ids, entries, strict=True)
            ]
            completion.cumulative_logprob = sum(e.sampled for e in entries if e is not None)
        return completion

    def _logprobs(self, token: int, entry: TokenLogprobs | None) -> dict[int, Logprob]:
        assert entry is not None, "log-probabilities were asked for and not computed"

        def text(token_id: int) -> str:
            return self._tokenizer.decode([token_id], skip_special_tokens=False)

        found = {token: Logprob(entry.sampled, entry.sampled_rank, text(token))}
        for rank, (token_id, logprob) in enumerate(zip(entry.top_ids, entry.top, strict=True), 1):
            found.setdefault(token_id, Logprob(logprob, rank, text(token_id)))
        return found
