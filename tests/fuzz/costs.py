"""Bytes that a scenario's ranks report: of KV counted here from what each rank holds, of weights
from the plan. Plans over the few pairs of layouts are made once."""

from __future__ import annotations

from functools import cache

from seesaw.engine import predict
from seesaw.engine.build import plan_weights
from seesaw.engine.messages import RankSetup
from seesaw.engine.stats import TransferBytes
from seesaw.layout import ParallelLayout, rank_ranges
from seesaw.scheduler.output import Load, Phase, Store
from tests.fuzz.scenario import SPEC, Scenario

ELEMENT_BYTES = 4


class KVBytes:
    """Of one rank's part of a store or load: whole blocks of its layers and heads, K and V. Of the
    ranks that hold a head only the lowest stores it."""

    def __init__(self, scenario: Scenario) -> None:
        self._block_size = scenario.config.block_size
        self._layouts = {"prefill": scenario.prefill.replica, "decode": scenario.decode.replica}

    def of(self, rank: int, order: Store | Load) -> int:
        stores = isinstance(order, Store)
        layout = self._layouts[order.phase if isinstance(order, Store) else "decode"]
        layers, heads = _held(layout, rank, stores)
        tokens = -(-order.num_tokens // self._block_size) * self._block_size
        return tokens * layers * heads * 2 * SPEC.head_dim * ELEMENT_BYTES


@cache
def _held(layout: ParallelLayout, rank: int, stores: bool) -> tuple[int, int]:
    """Layers and KV heads."""
    own = rank_ranges(layout, SPEC, rank)
    heads = set(range(*own.kv_heads))
    if stores:
        for lower in range(rank):
            other = rank_ranges(layout, SPEC, lower)
            if other.layers == own.layers:
                heads -= set(range(*other.kv_heads))
    return own.layers.size, len(heads)


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
