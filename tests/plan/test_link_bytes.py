"""What ranks send each other, as counted by hand."""

from __future__ import annotations

from seesaw.families.registry import spec_from_hf
from seesaw.layout import ParallelLayout
from seesaw.plan.link_bytes import sent_bytes

SPEC = spec_from_hf(
    {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 512, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
)  # fmt: skip
ROW = 64 * 2


def sent(layout: str, num_tokens: int, num_sampled: int) -> list[int]:
    return sent_bytes(SPEC, ParallelLayout.parse(layout), 2, num_tokens, num_sampled)


def test_one_rank_sends_nothing() -> None:
    assert sent("tp1", 10, 1) == [0]


def test_two_ranks_trade_the_embedded_rows_and_two_sums_a_layer() -> None:
    assert sent("tp2", 8, 8) == [(1 + 2 * 3) * 8 * ROW] * 2
    # Of a prompt, the last layer goes on with the row that draws.
    assert sent("tp2", 10, 1) == [((1 + 2 * 2) * 10 + 2) * ROW] * 2


def test_a_stage_hands_its_rows_on() -> None:
    assert sent("pp3", 10, 1) == [10 * ROW, 10 * ROW, 0]


def test_stages_of_two_ranks_do_both() -> None:
    first, last = (1 + 2 * 2) * 10 * ROW + 10 * ROW, 2 * ROW
    assert sent("tp2-pp2", 10, 1) == [first, first, last, last]


def test_four_ranks_send_three_quarters_twice() -> None:
    assert sent("tp4", 4, 4) == [7 * 4 * ROW * 6 // 4] * 4
