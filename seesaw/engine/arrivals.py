"""A request at the engine's door: what is checked before it is queued, and what is queued.

Owns no state; may be called from any thread.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass

from seesaw.engine.prompts import EncodedPrompt
from seesaw.errors import RequestError
from seesaw.outputs import CompletionOutput, RequestMetrics, RequestOutput
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.request import Request


@dataclass(slots=True)
class Arrived:
    """A caller's request on its way to the scheduler: `requests` are its `n` answers."""

    request_id: str
    prompt: str | None
    requests: list[Request]
    stream: bool
    times_tokens: bool


def check_id(request_id: str) -> None:
    try:
        request_id.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"request id {request_id!r} is no valid Unicode ({error.reason}). Give another one.",
            param="request_id",
        ) from error


def check_arrival(given_s: float | None, now_s: float) -> float:
    """Raises RequestError for what is no moment of the past, such as one of `time.time()`."""
    if given_s is None:
        return now_s
    if not given_s <= now_s or given_s == -math.inf:
        raise RequestError(
            f"arrival_s={given_s}: expected seconds of time.perf_counter() up to now, {now_s:.6f}. "
            "Leave it out for requests that come now, and add others when they have come.",
            param="arrival_s",
        )
    return given_s


def empty_answers(
    request_id: str, prompt: EncodedPrompt, n: int, came_s: float, times_tokens: bool
) -> RequestOutput:
    answers = [CompletionOutput(index, "", [], finish_reason="length") for index in range(n)]
    for answer in answers:
        answer.token_s = [] if times_tokens else None
    return RequestOutput(
        request_id,
        prompt.text,
        prompt.token_ids,
        answers,
        finished=True,
        metrics=RequestMetrics(came_s, finished_s=time.perf_counter()),
    )


def draw_seed(engine_seed: int, request_id: str, sampling: SamplingParams, index: int) -> int:
    """The same for the same engine seed and request id, whatever else runs and in what order."""
    own = sampling.seed if sampling.seed is not None else f"{engine_seed}/{request_id}"
    digest = hashlib.blake2b(f"{own}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
