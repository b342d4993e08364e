"""Two lanes in the simulator: the engine's scheduler against a clock in which they run beside each
other, slower by what the cost model says."""

from __future__ import annotations

import itertools
import random

import pytest

from seesaw.config import EngineConfig
from seesaw.errors import ConfigError
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.lane_costs import LaneCosts
from seesaw.plan.machine_files import read_machines
from seesaw.scheduler.output import Batch, Row, SchedulerOutput
from seesaw.simulate.lanes import LaneClock
from seesaw.simulate.simulation import Scenario, simulate
from seesaw.trace import Spans
from tests.plan.models import spec_of
from tests.simulate.scenarios import make_scenario

H100 = read_machines("h100-sxm")[0]


def mixed_load(
    policy: str, seed: int, *, layout: str = "tp1", count: int = 60, rate: float = 4.0
) -> Scenario:
    """Short and long prompts (the paper's Mixed: 60% chats, 40% documents) on H100s."""
    rng, at_s, requests = random.Random(seed), 0.0, []
    for _ in range(count):
        at_s += rng.expovariate(rate)
        is_long = rng.random() < 0.4
        prompt = rng.randint(4000, 9000) if is_long else rng.randint(50, 1000)
        requests.append((at_s, prompt, rng.randint(50, 300)))
    both = ParallelLayout.parse(layout)
    (machine,) = read_machines(f"{both.num_ranks}xh100-sxm")
    return Scenario(
        spec=spec_of("8B"),
        machine=machine,
        layouts=(both, both),
        requests=requests,
        config=EngineConfig(model="8B", policy=policy, max_num_batched_tokens=8192),
        tile=128,
    )


def test_lanes_run_beside_each_other_and_each_runs_one_step_at_a_time() -> None:
    seed = random.randrange(2**32)
    print(f"mixed_load(seed={seed})")
    spans = Spans()
    scenario = mixed_load("nexus", seed)
    result = simulate(scenario, spans)
    assert result.num_requests == len(scenario.requests)
    assert result.output_tokens == sum(answer for _, _, answer in scenario.requests)
    assert result.counts is not None
    assert result.counts.num_share_changes > 0
    lanes: dict[str, list[tuple[float, float]]] = {"compute": [], "compute 2": []}
    for span in spans.spans:
        lanes[span.lane].append((span.start_s, span.end_s))
    for runs in lanes.values():
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(runs))
    assert any(
        one[0] < other[1] and other[0] < one[1]
        for one, other in itertools.product(lanes["compute"], lanes["compute 2"])
    )
    assert 0 < result.busy_share[0] <= 1
    again = simulate(mixed_load("nexus", seed))
    assert again.samples == result.samples


def test_answers_go_on_beside_long_prompts() -> None:
    """What lanes are for: no token waits for a prompt, as all do in one batch with it."""
    seed = random.randrange(2**32)
    print(f"mixed_load(seed={seed})")
    longest = {}
    for policy, lane in (("nexus", "compute 2"), ("continuous", "compute")):
        spans = Spans()
        simulate(mixed_load(policy, seed), spans)
        longest[policy] = max(
            span.end_s - span.start_s for span in spans.spans if span.lane == lane
        )
    assert 4 * longest["nexus"] < longest["continuous"]


def test_replicas_have_lanes_of_their_own() -> None:
    result = simulate(mixed_load("nexus", 1, layout="dp2", count=30))
    assert all(0 < share <= 1 for share in result.busy_share)
    assert len(result.busy_share) == 2


def test_a_layout_of_several_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match="one device of a replica"):
        simulate(mixed_load("nexus", 1, layout="tp2"))


def test_small_pools_and_late_reports_end_all_requests() -> None:
    rng = random.Random(seed := random.randrange(2**32))
    print(f"seed {seed}")
    for _ in range(20):
        requests = [(rng.uniform(0, 20), rng.randint(1, 60), rng.randint(1, 30)) for _ in range(12)]
        requests.sort()
        most = max(prompt + answer for _, prompt, answer in requests)
        result = simulate(
            make_scenario(
                requests, policy="nexus", max_num_batched_tokens=rng.choice((16, 64)),
                num_blocks=-(-most // 4) + rng.randint(0, 12),
            )
        )  # fmt: skip
        assert result.output_tokens == sum(answer for _, _, answer in requests)


def step_of(number: int, lane: int, rows: list[Row], share: float) -> SchedulerOutput:
    return SchedulerOutput(number, lane=lane, batches=[Batch(rows, share)])


def test_a_step_costs_what_its_share_and_its_neighbour_make_of_it() -> None:
    costs = LaneCosts(spec_of("8B"), H100, "bfloat16", 16)
    prompt = [Row("p", 0, 4096, 0, 32, True)]
    answers = [Row(f"a{at}", 2000, 1, 0, 32, True) for at in range(32)]

    def decode_s(prefill_share: float, decode_share: float) -> float:
        """Of a step that decodes, begun while a prompt runs on such a share; 0 = none."""
        clock = LaneClock(costs)
        if prefill_share:
            clock.submit(step_of(0, 0, prompt, prefill_share), 0.0)
        ran = clock.submit(step_of(1, 1, answers, decode_share), 1e-3)
        assert len(ran.output.token_ids) == 32
        return ran.done_s - 1e-3

    alone = decode_s(0.0, 1.0)
    assert decode_s(0.0, 0.25) > alone
    assert decode_s(0.5, 0.5) > decode_s(0.0, 0.5), "beside a prompt KV is read more slowly"
    # Both have all of the device until the other's next step.
    assert decode_s(1.0, 1.0) >= 2 * alone
    assert decode_s(0.75, 0.5) > decode_s(0.5, 0.5), "a quarter of the device is both lanes'"


def test_steps_that_are_over_are_forgotten() -> None:
    """Also those of a lane that runs alone for as long as nothing comes for the other one."""
    clock = LaneClock(LaneCosts(spec_of("8B"), H100, "bfloat16", 16))
    now_s = 0.0
    for number in range(100):
        row = Row("a", 2000 + number, 1, 0, 32, True)
        now_s = clock.submit(step_of(number, 1, [row], 1.0), now_s).done_s
        assert sum(map(len, clock._steps)) <= 2
