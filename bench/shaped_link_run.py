"""One run of `shaped_link.py`: a job on an engine of its own, timed from its first prompt to its
last answer, with the bytes that crossed the link. Reads what to run as JSON from standard input;
prints what came of it as one JSON line.

The tail begins when fewer requests are left than can be resident: from there on no layout can keep
its batch, so it says more of the job's size than of the layouts. Figures come for all of the job
and for what is before its tail.
"""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
import time
from typing import Any

from seesaw import SamplingParams
from seesaw.api.bench_throughput import movement_figures
from seesaw.config import EngineConfig
from seesaw.engine.engine import Engine
from seesaw.plan.link_bytes import sent_bytes
from seesaw.scheduler.output import SchedulerOutput


class LinkPlan:
    """Bytes that the first two ranks should have sent, step by step."""

    def __init__(self, engine: Engine, element_bytes: int) -> None:
        self._spec = engine.spec
        self._layouts = {"prefill": engine.layouts.prefill, "decode": engine.layouts.decode}
        self._element_bytes = element_bytes
        self.sent = [0, 0]

    def observe(self, step: SchedulerOutput, _: float) -> None:
        rows = step.rows
        if not rows:
            return
        sent = sent_bytes(
            self._spec, self._layouts[step.phase], self._element_bytes,
            sum(row.num_tokens for row in rows), sum(row.samples for row in rows),
        )  # fmt: skip
        self.sent = [self.sent[0] + sent[0], self.sent[1] + sent[1]]


def link_counters() -> list[int] | None:
    """Bytes that the ranks have sent since the link is up; None where there is no such link."""
    found = subprocess.run(
        ["ip", "-n", "ssw0", "-j", "-s", "link", "show", "ssv0"], capture_output=True, text=True
    )
    if found.returncode:
        return None
    stats = json.loads(found.stdout)[0]["stats64"]
    return [stats["tx"]["bytes"], stats["rx"]["bytes"]]


def run_job(engine: Engine, job: dict[str, Any], seed: int) -> tuple[float, float, int]:
    """(seconds of the whole job, seconds before its tail, tokens drawn before its tail)."""
    rng = random.Random(seed)
    sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=job["output_len"])
    began_s = time.perf_counter()
    for number in range(job["num_requests"]):
        prompt = [rng.randrange(engine.vocab_size) for _ in range(job["input_len"])]
        engine.add_request(f"{seed}/{number}", prompt, sampling, stream=True)
    left, drawn = job["num_requests"], {}
    steady_s, steady_tokens = 0.0, 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            drawn[output.request_id] = len(output.outputs[0].token_ids)
            left -= output.finished
        if left < job["resident"] and not steady_s:
            steady_s = time.perf_counter() - began_s
            steady_tokens = sum(drawn.values())
    elapsed_s = time.perf_counter() - began_s
    assert list(drawn.values()) == [job["output_len"]] * job["num_requests"], drawn
    return elapsed_s, steady_s, steady_tokens


def main() -> None:
    job = json.load(sys.stdin)
    start_s = time.perf_counter()
    config = EngineConfig(
        **job["settings"],
        expected_lengths=[(job["input_len"], job["output_len"])],
        expected_requests=job["num_requests"],
    )
    with Engine(config) as engine:
        start_s = time.perf_counter() - start_s
        # Touches weights, pools and code once; two prompts, so that every stage has had one.
        run_job(engine, {**job, "num_requests": 2, "output_len": min(4, job["output_len"])}, 1)
        engine.settle()
        plan = LinkPlan(engine, element_bytes=2)
        before, counted = copy.deepcopy(engine.stats), link_counters()
        engine.observe_steps(plan.observe)
        elapsed_s, steady_s, steady_tokens = run_job(engine, job, job["seed"] + 2)
        engine.settle()
        sent = link_counters()
        figures = movement_figures(before, engine.stats)
        layouts, reason = engine.layouts, engine.layouts.reason
        chunk = layouts.max_num_batched_tokens
        chosen = {} if chunk is None else {"max_num_batched_tokens": chunk}
    outputs = job["num_requests"] * job["output_len"]
    result = {
        "elapsed_s": elapsed_s,
        "output_tokens_per_s": outputs / elapsed_s,
        "total_tokens_per_s": (outputs + job["num_requests"] * job["input_len"]) / elapsed_s,
        "steady_s": steady_s,
        "steady_output_tokens_per_s": steady_tokens / steady_s if steady_s else None,
        "tail_s": elapsed_s - steady_s,
        "layouts": {"prefill": str(layouts.prefill), "decode": str(layouts.decode)},
        "reason": reason,
        "chosen": chosen,
        "start_s": start_s,
        "link_planned_bytes": plan.sent,
        "link_counted_bytes": None
        if counted is None or sent is None
        else [now - then for now, then in zip(sent, counted, strict=True)],
        **figures,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
