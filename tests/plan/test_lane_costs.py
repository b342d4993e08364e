"""Costs on a part of a device: those of the whole one on all of it, more on less, and more still
for answers whose KV is read beside prompts."""

from __future__ import annotations

from itertools import pairwise

import pytest

from seesaw.layout.parallel import ParallelLayout
from seesaw.plan import lane_costs
from seesaw.plan.cost_model import CostModel
from seesaw.plan.lane_costs import Beside, LaneCosts, Saturation, core_units, sm_units
from seesaw.plan.machine_files import builtin_cpu, read_machines
from tests.plan.models import spec_of

UNITS = 16
PROMPT = [(0, 4096, True)]
ANSWERS = [(2000 + 10 * row, 1, True) for row in range(32)]


def costs(machine: str = "h100-sxm") -> LaneCosts:
    (one,) = read_machines(machine)
    return LaneCosts(spec_of("8B"), one, "bfloat16", UNITS)


def test_on_all_units_a_lane_costs_what_the_device_does() -> None:
    (machine,) = read_machines("h100-sxm")
    one = costs()
    whole = CostModel(spec_of("8B"), machine, ParallelLayout(), "bfloat16")
    for rows in (PROMPT, ANSWERS):
        work = one.work(rows)
        assert one.seconds(work, UNITS) == pytest.approx(whole.stages_s(work)[0])


@pytest.mark.parametrize("machine", ["h100-sxm", "a100-80-sxm", "l4"])
def test_fewer_units_are_never_faster(machine: str) -> None:
    one = costs(machine)
    prompts, answers = one.work(PROMPT), one.work(ANSWERS)
    for work in (prompts, answers):
        seconds = [one.seconds(work, units) for units in range(1, UNITS + 1)]
        assert all(more >= less for more, less in pairwise(seconds))
    # Prompts wait for compute, answers for memory.
    assert one.seconds(prompts, UNITS // 2) > 1.3 * one.seconds(prompts, UNITS)
    assert one.seconds(answers, UNITS // 2) < 1.1 * one.seconds(answers, UNITS)


def test_answers_beside_prompts_read_their_kv_with_less() -> None:
    one = costs()
    prompts, answers = one.work(PROMPT), one.work(ANSWERS)
    alone = one.seconds(answers, 8)
    beside = one.seconds(answers, 8, Beside(prompts, 8))
    assert beside > alone
    # At most what both want is read in the time of the answers' step.
    longer = one.work([(60_000, 4096, True)])
    assert one.seconds(answers, 8, Beside(longer, 8)) != beside
    # Prompts have all of it, as the paper assumes.
    assert one.seconds(prompts, 8, Beside(answers, 8)) == one.seconds(prompts, 8)


@pytest.mark.parametrize("prompt", [(0, 512, True), (0, 8192, True), (60_000, 1024, False)])
def test_answers_keep_the_part_of_the_bandwidth_that_bytes_leave_them(
    prompt: tuple[int, int, bool],
) -> None:
    """Their KV takes at most as long as if what both lanes read were all theirs."""
    one = costs("l4")
    answers, prompts = one.work([(2000, 1, True)] * 64), one.work([prompt])
    kv_bytes = answers.decode_keys * 32 * 2 * 8 * 128 * 2
    most = max(prompts.chunk_keys * 32 * 2 * 8 * 128 * 2, 16e9)
    alone, beside = one.seconds(answers, 8), one.seconds(answers, 8, Beside(prompts, 8))
    assert alone < beside < alone * (1 + most / kv_bytes)


def test_steps_of_any_size_leave_a_bounded_number_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine asks for years."""
    monkeypatch.setattr(lane_costs, "MOST_COUNTS", 50)
    one = costs()
    answers = one.work(ANSWERS)
    for length in range(1, 200):
        one.seconds(answers, 8, Beside(one.work([(0, length, True)]), 8))
    assert one._weight_bytes.cache_info().currsize == 50


def test_saturation_is_in_proportion_up_to_its_knee() -> None:
    reached = Saturation(0.6, 0.75)
    assert reached(1.0) == 1.0
    assert reached(0.6) / reached(0.3) == pytest.approx(2)
    assert reached(0.8) / reached(0.7) == pytest.approx(1 / 0.9, rel=0.01)  # figure 5
    assert Saturation(0.28, 0.0)(0.3) == 1.0


def test_cores_compute_in_proportion_and_share_memory() -> None:
    (machine, *_) = builtin_cpu(2, 2**34)
    one = LaneCosts(spec_of("8B"), machine, "bfloat16", 2)
    prompts, answers = one.work(PROMPT), one.work(ANSWERS[:1])
    assert one.seconds(prompts, 1) == pytest.approx(2 * one.seconds(prompts, 2), rel=0.05)
    # One core reads 40 of the 55e9 bytes/s of two.
    assert one.seconds(answers, 1) == pytest.approx(1.375 * one.seconds(answers, 2), rel=0.1)


def test_units_are_eight_sms_or_a_core() -> None:
    assert (sm_units(132), sm_units(108), sm_units(7)) == (16, 13, 1)
    assert (core_units(2), core_units(96)) == (2, 16)
