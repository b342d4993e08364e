"""What a rank keeps of a request between steps: tokens as far as the host knows them, draws whose
tokens it does not know yet, blocks, hidden states between two layers, sampling."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import torch

from seesaw.engine.sampler import SamplingState
from seesaw.scheduler.output import SchedulerOutput


@dataclass(slots=True)
class RequestState:
    """`num_drawing`: draws that were begun and are not finished. `drawn_at`: where the token of the
    last of them stands on the device, see `InputBuffers`. `hidden_TH`: of positions that have run
    some of the layers, what goes into the next one."""

    tokens: list[int]
    sampling: SamplingState
    blocks: array[int] = field(default_factory=lambda: array("i"))
    num_drawing: int = 0
    drawn_at: int = 0
    hidden_TH: torch.Tensor | None = None

    def hear(self, start: int, tokens: list[int]) -> None:
        """Take in tokens from position `start` on, some of which may be known."""
        assert start <= len(self.tokens), f"tokens {len(self.tokens)} to {start} are unknown"
        for token in tokens[len(self.tokens) - start :]:
            self.tokens.append(token)
            self.sampling.add(token)

    def lose_kv(self) -> None:
        """It was preempted: all is computed again."""
        self.blocks = array("i")
        self.hidden_TH = None

    def take_hidden(self) -> torch.Tensor:
        hidden_TH, self.hidden_TH = self.hidden_TH, None
        assert hidden_TH is not None, "a row goes on where none has stopped"
        return hidden_TH

    def begin_draw(self, drawn_at: int) -> None:
        self.num_drawing += 1
        self.drawn_at = drawn_at

    def learn(self, token: int) -> None:
        """The token of the earliest draw that was begun; `sampling` has heard of it."""
        self.num_drawing -= 1
        self.tokens.append(token)


def take_in(requests: dict[str, RequestState], step: SchedulerOutput) -> None:
    """What a step says of requests, before its rows run."""
    for request_id in step.finished:
        del requests[request_id]
    for request_id in step.preempted:
        requests[request_id].lose_kv()
    for new in step.new_requests:
        requests[new.request_id] = RequestState(list(new.prompt_token_ids), SamplingState(new))
    for request_id, blocks in step.appended_blocks.items():
        requests[request_id].blocks.extend(blocks)
    for request_id, (start, tokens) in step.known_tokens.items():
        requests[request_id].hear(start, tokens)
