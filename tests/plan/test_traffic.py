"""Bytes and flops of a step against counts that are written out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seesaw.plan.traffic import Traffic, TrafficCounter
from tests.plan.models import spec_of

DENSE = spec_of("8B")
SPARSE = spec_of(
    "8B",
    architectures=["MixtralForCausalLM"],
    model_type="mixtral",
    num_local_experts=8,
    num_experts_per_tok=2,
)
HIDDEN, INNER, LAYERS = DENSE.hidden_size, DENSE.intermediate_size, DENSE.num_hidden_layers
QUERY = DENSE.num_attention_heads * DENSE.head_dim
KV = 2 * DENSE.num_key_value_heads * DENSE.head_dim
LAYER = HIDDEN * (2 * QUERY + KV + 3 * INNER)
HEAD = HIDDEN * DENSE.vocab_size


def test_a_prompt_reads_each_weight_once() -> None:
    found = TrafficCounter(DENSE, 2).step([(100, 100, True, 0, LAYERS)])
    pairs = 100 * 101 // 2
    assert found.num_bytes == 2 * (LAYERS * (LAYER + 200 * KV) + HEAD)
    assert found.flops == 2 * LAYERS * LAYER * 100 + 2 * HEAD + 4 * LAYERS * pairs * QUERY


def test_rows_share_weights_and_not_keys() -> None:
    counter = TrafficCounter(DENSE, 2)
    one, two = counter.step([(1, 50, True, 0, LAYERS)]), counter.step(
        [(1, 50, True, 0, LAYERS), (1, 70, True, 0, LAYERS)]
    )  # fmt: skip
    assert two.num_bytes - one.num_bytes == 2 * LAYERS * 71 * KV
    assert two.flops == 2 * one.flops + 4 * LAYERS * 20 * QUERY


def test_bytes_follow_the_type() -> None:
    row = (3, 9, True, 0, LAYERS)
    assert TrafficCounter(DENSE, 4).step([row]).num_bytes == pytest.approx(
        2 * TrafficCounter(DENSE, 2).step([row]).num_bytes
    )


def test_parts_of_the_layers_add_up() -> None:
    counter = TrafficCounter(DENSE, 2)
    whole = counter.step([(40, 40, True, 0, LAYERS)])
    parts = Traffic()
    parts.add(counter.step([(40, 40, False, 0, 5)]))
    parts.add(counter.step([(40, 40, True, 5, LAYERS)]))
    assert parts.num_bytes == pytest.approx(whole.num_bytes)
    assert parts.flops == pytest.approx(whole.flops)


def test_rows_in_other_layers_of_one_step_read_a_layer_once() -> None:
    counter = TrafficCounter(DENSE, 2)
    apart = [(1, 1, False, 0, 3)], [(1, 1, False, 2, 4)]
    together = counter.step([*apart[0], *apart[1]])
    alone = [counter.step(rows) for rows in apart]
    assert sum(one.num_bytes for one in alone) - together.num_bytes == 2 * LAYER
    assert sum(one.flops for one in alone) == together.flops


def test_windows_bound_what_is_read() -> None:
    layers = tuple(replace(layer, sliding_window=16) for layer in DENSE.layers)
    row = (1, 1000, False, 0, LAYERS)
    all_keys = TrafficCounter(DENSE, 2).step([row])
    some = TrafficCounter(replace(DENSE, layers=layers), 2).step([row])
    assert all_keys.num_bytes - some.num_bytes == pytest.approx(2 * LAYERS * (1000 - 16) * KV)


def test_a_token_computes_with_its_experts_only() -> None:
    counter = TrafficCounter(SPARSE, 2)
    layers = SPARSE.num_hidden_layers
    expert = 3 * SPARSE.hidden_size * SPARSE.moe_intermediate_size
    one = counter.step([(1, 1, False, 0, layers)])
    many = counter.step([(4096, 4096, False, 0, layers)])
    chosen = 2 * layers * expert * SPARSE.num_experts_per_tok
    assert chosen < one.flops < 1.2 * chosen
    assert many.num_bytes == pytest.approx(
        one.num_bytes
        + 2 * layers * (SPARSE.num_experts - SPARSE.num_experts_per_tok) * expert
        + 2 * layers * 2 * 4095 * 2 * SPARSE.num_key_value_heads * SPARSE.head_dim,
        rel=0.02,
    )


def test_tokens_of_a_prompt_choose_experts_more_alike_than_answers_do() -> None:
    counter, layers = TrafficCounter(SPARSE, 2), SPARSE.num_hidden_layers
    prompt = counter.step([(4, 4, False, 0, layers)])
    answers = counter.step([(1, 1, False, 0, layers)] * 4)
    assert prompt.num_bytes < 0.95 * answers.num_bytes


def test_no_rows_are_nothing() -> None:
    assert TrafficCounter(DENSE, 2).step([]) == Traffic(0.0, 0.0)
