"""Bytes that a scenario's ranks report: of KV counted here from what each rank holds, of weights
from the plan. Plans over the few pairs of layouts are made once."""

from __future__ import annotations

import itertools
from collections.abc import Set
from functools import cache

from seesaw.engine import predict
from seesaw.engine.build import plan_weights
from seesaw.engine.messages import RankSetup
from seesaw.engine.stats import TransferBytes
from seesaw.layout import ParallelLayout, rank_ranges
from seesaw.scheduler.output import Load, Phase, Relay, Store
from tests.fuzz.scenario import SPEC, Scenario

ELEMENT_BYTES = 4

Order = Store | Load | Relay
Cell = tuple[int, int]
"""A layer and a KV head."""


class KVBytes:
    """Of one rank's part of a store, load or relay: whole blocks of its layers and heads, K and V.
    Of the ranks that hold a head only the lowest stores it."""

    def __init__(self, scenario: Scenario) -> None:
        self._block_size = scenario.config.block_size
        self._layouts = {"prefill": scenario.prefill.replica, "decode": scenario.decode.replica}

    def of(self, rank: int, order: Order) -> tuple[int, int]:
        """Bytes that it copies, and what of them comes from other ranks."""
        layout = self._layouts[order.phase if isinstance(order, Store) else "decode"]
        cells = _held(layout, rank)
        foreign: Set[Cell] = set()
        if isinstance(order, Store):
            cells = cells.difference(*(_held(layout, lower) for lower in range(rank)))
        elif isinstance(order, Relay):
            foreign = cells - _held(self._layouts["prefill"], rank)
        tokens = -(-order.num_tokens // self._block_size) * self._block_size
        cell_bytes = tokens * 2 * SPEC.head_dim * ELEMENT_BYTES
        return len(cells) * cell_bytes, len(foreign) * cell_bytes


@cache
def _held(layout: ParallelLayout, rank: int) -> frozenset[Cell]:
    own = rank_ranges(layout, SPEC, rank)
    return frozenset(itertools.product(range(*own.layers), range(*own.kv_heads)))


def weight_bytes(setup: RankSetup, phase: Phase, rank: int) -> dict[str, int]:
    """By source, of one rank's change to `phase`; empty where the layouts are equal."""
    key = (setup.prefill, setup.decode, setup.reload, setup.peers, phase, rank)
    if key not in _moved:
        changes = plan_weights(setup).changes
        found = changes[phase].bytes_by_source(rank) if phase in changes else {}
        _moved[key] = {str(source): nbytes for source, nbytes in found.items()}
    return dict(_moved[key])


def predict_bytes(setup: RankSetup) -> TransferBytes:
    """The engine's own prediction."""
    tier_tokens = setup.tier.block_tokens if setup.tier else 0
    layouts = setup.prefill, setup.decode, setup.reload, setup.peers
    key = (*layouts, setup.block_size, tier_tokens)
    if key not in _predicted:
        _predicted[key] = predict.predict_bytes(setup)
    return _predicted[key]


_moved: dict[tuple[object, ...], dict[str, int]] = {}
_predicted: dict[tuple[object, ...], TransferBytes] = {}
