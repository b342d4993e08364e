"""Counters of what moved add up, and predictions are those of layout and sizes."""

from __future__ import annotations

import pytest

from seesaw.engine.stats import MovedBytes, MovementStats, TransferBytes

ONE = TransferBytes(
    block_size=16,
    store_block_bytes={"prefill": 1000, "decode": 900},
    load_block_bytes=1200,
    tier_block_bytes=4000,
    store_pieces={"prefill": [0, 20, 4], "decode": [0, 30, 6]},
    load_pieces=[0, 10, 1],
    relay_block_bytes={"copy": 300, "peer": 500},
    weights_by_phase={"decode": {"resident": 5, "copy": 0, "peer": 0, "host": 7}},
)


@pytest.mark.parametrize(("num_tokens", "blocks"), [(1, 1), (16, 1), (17, 2), (160, 10)])
def test_whole_blocks_are_copied(num_tokens: int, blocks: int) -> None:
    assert ONE.store("prefill", num_tokens) == blocks * 1000
    assert ONE.store("decode", num_tokens) == blocks * 900
    assert ONE.load(num_tokens) == blocks * 1200
    assert ONE.relay(num_tokens) == (blocks * 800, blocks * 500)


def test_pieces_are_those_of_whole_tier_blocks_and_the_rest() -> None:
    assert [ONE.pieces(n) for n in (1, 32, 33, 80)] == [10, 1, 11, 12]
    assert ONE.pieces(80, "prefill") == 2 * 4 + 20


def test_a_change_without_a_plan_moves_no_weights() -> None:
    assert ONE.weights("decode")["host"] == 7
    assert set(ONE.weights("prefill").values()) == {0}


def test_changes_add_up_by_source() -> None:
    moved = MovedBytes()
    moved.add_weights({"host": 3, "resident": 2})
    moved.add_weights({"host": 4, "peer": 1})
    assert moved.weight_bytes_moved == {"resident": 2, "copy": 0, "peer": 1, "host": 7}
    assert MovedBytes().weight_bytes_moved["host"] == 0


def test_time_belongs_to_its_phase() -> None:
    stats = MovementStats()
    for phase, compute_s, reshard_s in (("prefill", 1.0, 0.5), ("decode", 2.0, 0.25)):
        stats.add_time(phase, compute_s, reshard_s)  # type: ignore[arg-type]
    stats.add_time("decode", 4.0, 0.0)
    assert (stats.prefill_s, stats.decode_s, stats.reshard_s) == (1.0, 6.0, 0.75)
