"""Strikes a rank of a real engine at a chosen moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from seesaw.engine.messages import Step
from seesaw.engine.ranks import Ranks
from seesaw.engine.wire import decode
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import SchedulerOutput

PROMPTS = [[5 + i, 6, 7, 8, 9 + i] * 6 for i in range(12)]
SAMPLING = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SMALL_TIER = {"host_kv_memory": str(192 * 1024), "max_model_len": 64}
"""So small that there are many phases."""

LIMIT_S = 30.0
"""A failure is told within 10 s on a machine that does nothing else."""

MOMENTS: dict[str, Callable[[SchedulerOutput], bool]] = {
    "prefill": lambda step: step.phase == "prefill" and bool(step.num_tokens),
    "decode": lambda step: step.phase == "decode" and bool(step.num_tokens),
    "load": lambda step: bool(step.loads),
    "transition": lambda step: step.reshard,
}


def strike(
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    rank: int,
    signal_number: int,
    resume_s: float | None = None,
) -> list[float]:
    """Send the signal to the rank when the first step of that kind has been sent, or for "prefill"
    just before that, so that it is in this step for sure; the time is in the list that is returned
    from then on. `resume_s`: SIGCONT so much later."""
    send, wanted = Ranks.send_encoded, MOMENTS[moment]
    struck: list[float] = []

    def sending(self: Ranks, ranks: Any, data: bytes) -> None:
        message = decode(data)
        is_wanted = isinstance(message, Step) and wanted(message.output) and not struck
        if not (is_wanted and moment == "prefill"):
            send(self, ranks, data)
        if is_wanted:
            struck.append(time.monotonic())
            os.kill(self.pids[rank], signal_number)
            if resume_s is not None:
                threading.Timer(resume_s, os.kill, (self.pids[rank], signal.SIGCONT)).start()
            if moment == "prefill":
                send(self, ranks, data)

    monkeypatch.setattr(Ranks, "send_encoded", sending)
    return struck
