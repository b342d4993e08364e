"""What a finished or growing request looks like to its caller (vLLM's names and meaning)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from seesaw.errors import RequestError

FinishReason = Literal["stop", "length", "abort"]


class Logprob(NamedTuple):
    """Log-probability of one token at one position; `rank` counts from 1 (most probable)."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` answers to a request.

    `finish_reason` is None while the answer grows. `stop_reason` is the stop string or stop token
    id that ended it, None for end-of-sequence and length. `token_s`, where it was asked for, says
    when each token was known, as RequestMetrics does.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    token_s: list[float] | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Moments of a request in seconds of `time.perf_counter()`, which never goes back and which
    traces are written by; None = has not happened. `scheduled_s`: its first step was handed over.
    A token is known when its step has come back and the next one is planned."""

    arrival_s: float
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """State of a request. `error` is set, and `outputs` empty, where the request could not be
    served.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    metrics: RequestMetrics | None = None
    num_cached_tokens: int = 0
    error: RequestError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """Where an engine stands, over all replicas; tokens and seconds over its life.

    `phase` is "prefill" or "decode", of the first replica, and "" where prompts and answers share
    steps; `layout` is the one that it computes in. Shares are of the blocks that there are of the
    decode pool, and of the host tier, where there is one. `num_begun` requests are in the engine
    and their prompts are being computed, or have been.
    """

    phase: str
    layout: str
    device_share: float
    tier_share: float | None
    num_begun: int
    num_waiting: int
    prompt_tokens: int
    decoded_tokens: int
    prefill_s: float
    decode_s: float

    def since(self, before: EngineStatus) -> EngineStatus:
        """The same with tokens and seconds since `before`."""
        return replace(
            self,
            prompt_tokens=self.prompt_tokens - before.prompt_tokens,
            decoded_tokens=self.decoded_tokens - before.decoded_tokens,
            prefill_s=self.prefill_s - before.prefill_s,
            decode_s=self.decode_s - before.decode_s,
        )
