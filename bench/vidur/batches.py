"""The batches of Vidur's vLLM- and Sarathi-style schedulers, for tests/scheduler/test_vidur.py.

Vidur (MLSys 2024, arXiv 2405.05465) runs in an environment of its own; nothing of seesaw is needed:

    python3.11 -m venv vidur-env && vidur-env/bin/pip install vidur==0.0.26
    vidur-env/bin/python bench/vidur/batches.py tests/scheduler/vidur_batches.json.gz

Its schedulers, requests, batches and events are its own. What is put in place of its own: the
predictor (every batch takes `STEP_S` and `TOKEN_S` for each of its tokens), the lengths and
arrivals, which are drawn here, and metrics, of which none are kept.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import random
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

from vidur.config import CacheConfig, ReplicaConfig, SarathiSchedulerConfig, VllmSchedulerConfig
from vidur.entities import Replica, Request
from vidur.events import RequestArrivalEvent
from vidur.events.replica_schedule_event import ReplicaScheduleEvent
from vidur.scheduler.global_scheduler.round_robin_global_scheduler import RoundRobinGlobalScheduler
from vidur.scheduler.replica_scheduler.sarathi_replica_scheduler import SarathiReplicaScheduler
from vidur.scheduler.replica_scheduler.vllm_replica_scheduler import VLLMReplicaScheduler
from vidur.types import ReplicaId

STEP_S, TOKEN_S = 1e-3, 1e-4
SEED = 9
NUM_REQUESTS = 1000
RATE_PER_S = 26.0
"""A little more than a batch of this many can take in: requests wait."""
BLOCK_SIZE = 16
BATCH = 48
WATERMARK = 0.01
CHUNK = 256
WHOLE_TOKENS = 2048
MAX_TOKENS = 2048
POOLS = {"roomy": 8192, "tight": 600}
"""Blocks: as many as are ever asked for, and so few that a request is restarted soon."""


def draw() -> list[tuple[float, int, int]]:
    """Arrival, prompt and answer of each request."""
    rng = random.Random(SEED)
    requests, at_s = [], 0.0
    for _ in range(NUM_REQUESTS):
        prompt = min(WHOLE_TOKENS - 512, max(1, round(rng.lognormvariate(5.3, 1.1))))
        answer = min(512, max(1, round(rng.lognormvariate(3.3, 1.0))))
        requests.append((at_s, prompt, answer))
        at_s += rng.expovariate(RATE_PER_S)
    return requests


class ConstantTime:
    """In place of a predictor."""

    def get_execution_time(self, batch: Any, stage: int) -> SimpleNamespace:
        seconds = STEP_S + TOKEN_S * batch.total_num_q_tokens
        return SimpleNamespace(total_time=seconds, model_time=seconds)


class NoMetrics:
    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class OneReplica(RoundRobinGlobalScheduler):
    def __init__(self, scheduler: Any) -> None:
        self._replica_schedulers = {ReplicaId(0): scheduler}
        self._num_replicas = 1
        self._request_queue = []
        self._request_counter = 0


def run(kind: type, config: Any, num_blocks: int, drawn: list[tuple[float, int, int]]) -> Any:
    """Each batch as [[request, tokens], ...], all of them or those before a request is restarted:
    Vidur's requests do not survive that, as they count the tokens of a stage on from before."""
    replica_config = ReplicaConfig()
    scheduler = kind(
        replica_config=replica_config,
        replica_scheduler_config=config,
        cache_config=CacheConfig(
            block_size=BLOCK_SIZE, num_blocks=num_blocks, watermark_blocks_fraction=WATERMARK
        ),
        request_generator_config=SimpleNamespace(max_tokens=MAX_TOKENS),
        replica=Replica(replica_config),
        num_stages=1,
        execution_time_predictor=ConstantTime(),
    )
    requests = [Request(*one) for one in drawn]
    number = {request.id: at for at, request in enumerate(requests)}
    one, metrics = OneReplica(scheduler), NoMetrics()
    events: list[Any] = []

    def push(event: Any) -> None:
        heapq.heappush(events, (event._priority_number, event))

    for request in requests:
        push(RequestArrivalEvent(request.arrived_at, request))
    batches: list[Any] = []
    while events and not any(request.num_restarts for request in requests):
        _, event = heapq.heappop(events)
        for new in event.handle_event(one, metrics):
            push(new)
        batch = isinstance(event, ReplicaScheduleEvent) and event._batch
        if batch:
            rows = zip(batch.requests, batch.num_q_tokens, strict=True)
            batches.append([[number[request.id], count] for request, count in rows])
    ended = all(request.completed for request in requests)
    if not ended:
        batches.pop()  # for which one was restarted
    return {"num_blocks": num_blocks, "batches": batches, "ended": ended}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="file to write, .json.gz")
    target = parser.parse_args().target
    drawn = draw()
    systems = {
        "vllm": (
            VLLMReplicaScheduler,
            VllmSchedulerConfig(batch_size_cap=BATCH, max_tokens_in_batch=WHOLE_TOKENS),
        ),
        "sarathi": (
            SarathiReplicaScheduler,
            SarathiSchedulerConfig(batch_size_cap=BATCH, chunk_size=CHUNK),
        ),
    }
    found = {
        "vidur": version("vidur"),
        "step_s": STEP_S, "token_s": TOKEN_S, "block_size": BLOCK_SIZE, "batch": BATCH,
        "watermark": WATERMARK, "chunk": CHUNK, "whole_tokens": WHOLE_TOKENS,
        "max_tokens": MAX_TOKENS, "requests": drawn,
        "runs": {
            f"{name}, {pool}": run(kind, config, num_blocks, drawn)
            for name, (kind, config) in systems.items()
            for pool, num_blocks in POOLS.items()
        },
    }  # fmt: skip
    text = json.dumps(found, separators=(",", ":"))
    with open(target, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write(text.encode())
    for name, one in found["runs"].items():
        print(f"{name}: {len(one['batches'])} batches{'' if one['ended'] else ', then a restart'}")


if __name__ == "__main__":
    main()
