"""How two lanes share a device: the greedy search of Nexus (arXiv 2507.06608) over whole units of
it. Arithmetic over what a cost model says; knows no steps.

The paper moves by 1% of a GPU from the present split. Units are what hardware has (8 SMs, a core),
and since a lane is never slower on more of them, bisection finds the same split in fewer steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Seconds = Callable[[int], float]
"""Of a lane's step on so many units while the other lane has the rest. On all of them it is what a
slowdown is measured by. Does not rise with the units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """`prefill_slowdown` (the paper's alpha) and `decode_slowdown` (beta): how many times longer
    than on all units a step of the lane may take that is not favoured. Prompts are favoured while
    less than `kv_switch` of the KV blocks are held, answers from there on: they end and give theirs
    back. `hysteresis`: the share of the device by which a split must differ from the present one to
    take its place (the paper prints no value)."""

    prefill_slowdown: float = 1.3
    decode_slowdown: float = 1.1
    kv_switch: float = 0.7
    hysteresis: float = 0.1


def most_units(slowed: Seconds, units: int, slack: float) -> int:
    """The most of `units` that leave the other lane, which takes `slowed(n)` on n of them, at least
    one and no more than `slack` times its time on all; 1 where nothing does.

    `slowed` is asked 1 + log2(units) times, rounded up.
    """
    assert units > 1, f"{units} units are not to be shared"
    limit_s = slack * slowed(units)
    least, most = 1, units - 1
    while least < most:
        middle = (least + most + 1) // 2
        if slowed(units - middle) <= limit_s:
            least = middle
        else:
            most = middle - 1
    return least


def split(rule: SplitRule, prefill: Seconds, decode: Seconds, units: int, kv_usage: float) -> int:
    """Units of the lane that prefills; the others are of the one that decodes. `kv_usage`: the
    share of KV blocks that are held."""
    if kv_usage < rule.kv_switch:
        return most_units(decode, units, rule.decode_slowdown)
    return units - most_units(prefill, units, rule.prefill_slowdown)


def settled(rule: SplitRule, wanted: int, present: int | None, units: int) -> int:
    """`wanted` units where that differs enough from the `present` ones, or there are none."""
    if present is None or abs(wanted - present) >= rule.hysteresis * units:
        return wanted
    return present
