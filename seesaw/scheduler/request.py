"""One request as the scheduler sees it: counters over its tokens, its blocks, how it ended."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum

from seesaw.outputs import FinishReason
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.blocks import ROOT, BlockPool
from seesaw.scheduler.output import TokenLogprobs

ALL = sys.maxsize
"""Tokens, drawn and to be drawn."""


class RequestStatus(Enum):
    WAITING = "waiting"
    PREFILLING = "prefilling"
    """Has blocks of the prefill pool, and tier blocks to be stored to or blocks of the decode pool
    to be relayed to."""
    STORING = "storing"
    """Its device blocks are being copied to its tier blocks."""
    STORED = "stored"
    LOADING = "loading"
    """Its tier blocks are being copied to its blocks of the decode pool."""
    RELAYING = "relaying"
    """Its blocks of the prefill pool are being copied to its blocks of the decode pool."""
    RUNNING = "running"
    """Has blocks of the decode pool."""
    PARKED = "parked"
    """Runs too, but has given its blocks to others for a while: its KV is in its tier blocks."""
    DRAINING = "draining"
    """Ended or preempted while steps with its rows, or a copy of its blocks, are in flight; keeps
    its blocks until they are back."""
    FINISHED = "finished"


class Request:
    """Positions run from 0 over prompt and answer.

    `tokens` are the known ones; `num_tokens` counts pending ones too, which steps in flight are
    still drawing; `num_computed` counts positions whose KV was scheduled, in all layers.
    `num_tokens - num_computed` is what is left to run: the first `wave_tokens` of these have run
    the first `layer_cursor` layers (both 0 = none has begun), and workers keep their hidden states.
    The first `num_known` tokens, or ALL, are known to every worker when it runs a step planned now:
    not those that only the last of several pipeline stages drew.

    `arrival_s` is when it came, in seconds of its maker's clock: `time.perf_counter()` in the
    engine, simulated time in the simulator. Only differences mean something.
    """

    __slots__ = (
        "arrival_s", "arrived", "blocks", "content", "end_token_ids", "eos_token_ids",
        "finish_reason", "lane", "last_step", "layer_cursor", "limit", "logprobs",
        "num_cached_tokens", "num_computed", "num_in_tier", "num_known", "num_preemptions",
        "num_prompt", "num_registered", "num_tokens", "pool", "relay_blocks", "request_id",
        "sampling", "seed", "status", "stop_reason", "table_room", "tier_blocks", "tokens",
        "transfers", "was_sent", "wave_tokens",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        seed: int,
        eos_token_ids: tuple[int, ...],
        max_model_len: int,
        arrival_s: float = 0.0,
    ) -> None:
        self.request_id = request_id
        self.arrival_s = arrival_s
        self.sampling = sampling
        self.seed = seed
        self.eos_token_ids = eos_token_ids
        self.tokens = list(prompt_token_ids)
        self.num_prompt = len(self.tokens)
        self.num_tokens = self.num_prompt
        self.num_computed = 0
        self.layer_cursor = self.wave_tokens = 0
        self.num_known = ALL
        # The KV of the last drawn token is never needed, so max_model_len itself can be reached.
        room = max_model_len - self.num_prompt
        self.limit = self.num_prompt + (
            room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        )
        self.end_token_ids = sampling.end_token_ids(eos_token_ids)
        self.status = RequestStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.pool: BlockPool | None = None  # whose `blocks` it has
        self.blocks: list[int] = []
        self.table_room = 0  # tokens that `blocks` can hold
        # Content id of the blocks that can be shared, of which there are `num_registered`.
        self.content = ROOT
        self.num_registered = 0
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.last_step = -1
        self.lane = 0  # of that step
        self.was_sent = False
        self.tier_blocks: list[int] = []
        self.relay_blocks: list[int] = []  # of the decode pool, beside those of the prefill pool
        self.num_in_tier = 0  # positions that its tier blocks hold, as far as was ordered
        self.transfers: set[int] = set()  # ids of the stores, loads and relays in flight
        self.logprobs: list[TokenLogprobs | None] | None = None if sampling.logprobs is None else []
        # Drawn tokens by position whose predecessors have not arrived yet.
        self.arrived: dict[int, tuple[int, TokenLogprobs | None]] = {}

    @property
    def num_left(self) -> int:
        """Positions left to run. 0 also where the last token it may have is being drawn."""
        return 0 if self.num_tokens >= self.limit else self.num_tokens - self.num_computed

    @property
    def decodes(self) -> bool:
        """Only the newest position is left to run, in all layers: the prompt, and what was drawn
        before it last yielded, is computed."""
        return (
            self.num_computed >= self.num_prompt
            and self.num_tokens - self.num_computed <= 1
            and self.layer_cursor == 0
        )

    @property
    def output_token_ids(self) -> list[int]:
        return self.tokens[self.num_prompt :]

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.status.value}, prompt {self.num_prompt}, "
            f"known {len(self.tokens)}, pending {self.num_tokens - len(self.tokens)}, "
            f"computed {self.num_computed}, {len(self.blocks)} blocks, last step {self.last_step})"
        )
