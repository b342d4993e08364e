"""Kernels of layers with experts beyond the cases of their ops: order and tiles found on the
device, any blocks, numbers that are none, what is refused.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from seesaw.errors import UnsupportedError
from seesaw.families import spec_from_hf
from seesaw.kernels import moe_mlp as module
from seesaw.kernels.kernel import Config, Kernel
from seesaw.kernels.moe_mlp import moe_mlp
from seesaw.kernels.moe_route import moe_route
from seesaw.kernels.target import compile_targets
from seesaw.layers.comm import ALONE
from seesaw.layers.moe import MoE
from seesaw.layout import ParallelLayout, rank_ranges
from seesaw.ops.moe_mlp import moe_mlp_reference
from seesaw.ops.moe_route import moe_route_reference
from seesaw.ops.triton_backend import runs_on
from tests.checkpoints import tiny_config
from tests.models.harness import random_params


@pytest.fixture(autouse=True)
def generator() -> torch.Generator:
    """Shown by pytest where a test fails."""
    seed = random.randrange(2**31)
    print(f"seed={seed}")
    random.seed(seed)
    return torch.Generator().manual_seed(seed)


def make(
    generator: torch.Generator, tokens: int, experts: int, top_k: int, hidden: int, inner: int
) -> dict[str, torch.Tensor]:
    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    chosen = [torch.randperm(experts, generator=generator)[:top_k] for _ in range(tokens)]
    return {
        "x_TH": numbers(tokens, hidden),
        "gate_up_EJH": numbers(experts, 2 * inner, hidden) * hidden**-0.5,
        "down_EIH": numbers(experts, inner, hidden) * inner**-0.5,
        "weights_TN": numbers(tokens, top_k).softmax(-1),
        "experts_TN": torch.stack(chosen).int(),
    }


def on(device: str, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in given.items()}


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got.cpu(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("block_m", [1, 4, 16])
@pytest.mark.parametrize(
    ("pairs", "experts", "first", "held"),
    [(1, 1, 0, 1), (40, 3, 0, 3), (40, 9, 4, 3), (33, 2, 0, 7), (128, 8, 0, 8), (9, 5, 5, 4)],
)
def test_each_tile_has_pairs_of_one_expert_and_each_pair_one_tile(
    pairs: int, experts: int, first: int, held: int, block_m: int, device: str
) -> None:
    chosen = torch.tensor([random.randrange(experts) for _ in range(pairs)], dtype=torch.int32)
    num_tiles, untouched = pairs // block_m + held, -7
    order = torch.full((pairs,), untouched, dtype=torch.int32, device=device)
    starts = torch.full((held + 1,), untouched, dtype=torch.int32, device=device)
    tile_expert = torch.full((num_tiles,), untouched, dtype=torch.int32, device=device)
    counts = torch.arange(held, device=device)
    module._sort_kernel[(held,)](
        chosen.to(device), order, starts, tile_expert, counts, pairs, pairs, num_tiles, first,
        BLOCK_M=block_m, BLOCK=16,
    )  # fmt: skip
    by_expert = [[p for p in range(pairs) if chosen[p] == first + e] for e in range(held)]
    expected = [pair for group in by_expert for pair in group]
    assert order.tolist() == expected + [untouched] * (pairs - len(expected))
    sizes = torch.tensor([0, *map(len, by_expert)])
    assert starts.tolist() == sizes.cumsum(0).tolist()
    assert (counts.cpu() - torch.arange(held)).tolist() == [int(bool(group)) for group in by_expert]
    tiles: list[list[int]] = [[] for _ in range(held)]
    for tile, expert in enumerate(tile_expert.tolist()):
        assert 0 <= expert < held
        start, stop = starts[expert].item(), starts[expert + 1].item()
        row = start + (tile - start // block_m - expert) * block_m
        assert row >= start
        tiles[expert] += order[row : min(row + block_m, stop)].tolist() if row < stop else []
    assert tiles == by_expert


def test_experts_twice_in_a_token_leave_the_rows_that_there_are(device: str) -> None:
    chosen = torch.zeros(12, dtype=torch.int32, device=device)  # of 4 tokens, all expert 0 of 2
    words = torch.zeros(12 + 3 + 14, dtype=torch.int32, device=device)
    order, starts, tile_expert = words.split([12, 3, 14])
    module._sort_kernel[(2,)](
        chosen, order, starts, tile_expert, None, 12, 8, 14, 0, BLOCK_M=1, BLOCK=16
    )
    assert starts.tolist() == [0, 8, 8]


@pytest.mark.parametrize(
    "blocks",
    [
        {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP": 1},
        {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP": 8},
        {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64, "GROUP": 3},
    ],
    ids=str,
)
def test_any_blocks_give_the_same(
    blocks: dict[str, int],
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
) -> None:
    plain = module.config_for

    def config_for(kernel: Kernel, device: torch.device, **key: int | str) -> Config:
        if kernel in (module.GATE_UP, module.DOWN):
            return Config(blocks)
        return plain(kernel, device, **key)

    monkeypatch.setattr(module, "config_for", config_for)
    given = make(generator, 37, 4, 2, 50, 41)
    assert_close(moe_mlp(**on(device, given)), moe_mlp_reference(**given))


def test_slices_and_parts_add_up_to_the_whole(generator: torch.Generator, device: str) -> None:
    """Rows and matrices at any distance, each rank its experts; what is another rank's is not
    read, nor are its weights."""
    given = make(generator, 21, 5, 3, 32, 24)
    expected = moe_mlp_reference(**given)
    wide = torch.full((5, 60, 40), torch.nan)
    gate_up = wide[:, 6:54, :32].copy_(given["gate_up_EJH"])
    rows = torch.full((21, 70), torch.nan)[:, 3:35].copy_(given["x_TH"])
    total = torch.zeros(21, 32, device=device)
    counts = []
    for part in (slice(0, 2), slice(2, 5)):
        held = (given["experts_TN"] >= part.start) & (given["experts_TN"] < part.stop)
        weights = given["weights_TN"].masked_fill(~held, torch.nan)
        counts.append(torch.zeros(part.stop - part.start, dtype=torch.int64, device=device))
        strided = {"x_TH": rows.to(device), "gate_up_EJH": gate_up.to(device)[part]}
        total += moe_mlp(
            strided["x_TH"], strided["gate_up_EJH"], given["down_EIH"].to(device)[part],
            weights.to(device), given["experts_TN"].to(device), first_expert=part.start,
            counts_E=counts[-1],
        )  # fmt: skip
    assert_close(total, expected)
    chosen = set(given["experts_TN"].flatten().tolist())
    assert torch.cat(counts).tolist() == [int(expert in chosen) for expert in range(5)]


def test_reads_are_counted_over_calls(generator: torch.Generator, device: str) -> None:
    given = make(generator, 3, 4, 2, 16, 16)
    given["experts_TN"] = torch.tensor([[2, 0], [0, 2], [2, 0]], dtype=torch.int32)
    counts = torch.zeros(4, dtype=torch.int64, device=device)
    for _ in range(3):
        moe_mlp(**on(device, given), counts_E=counts)
    assert counts.tolist() == [3, 0, 3, 0]


@pytest.mark.parametrize("renormalize", [True, False])
def test_odd_logits_choose_experts_that_exist(renormalize: bool, device: str) -> None:
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor(
        [
            [nan] * 6,
            [1.0, nan, 3.0, nan, 2.0, nan],
            [-inf, 0.0, -inf, -inf, 0.0, -inf],
            [0.0, -0.0, 0.0, -0.0, 0.0, 0.0],
            [5.0, 4.0, 5.0, 1.0, 4.0, 5.0],
        ]
    )
    weights, experts = moe_route(logits.to(device), 4, renormalize=renormalize)
    assert experts.tolist() == [
        [0, 1, 2, 3],
        [2, 4, 0, 1],
        [1, 4, 0, 2],
        [0, 1, 2, 3],
        [0, 2, 5, 1],
    ]
    assert weights[:2].isnan().all()
    expected, _ = moe_route_reference(logits[2:], 4, renormalize=renormalize)
    torch.testing.assert_close(weights[2:].cpu(), expected)


def test_what_is_not_supported_is_refused(generator: torch.Generator, device: str) -> None:
    given = on(device, make(generator, 4, 3, 2, 16, 24))
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"x_TH": given["x_TH"].double()}, "moe_mlp: dtype of x: got float64, supported"),
        ({"down_EIH": given["down_EIH"].half()}, "dtype of down"),
        ({"down_EIH": given["down_EIH"].transpose(1, 2)}, "down"),
        ({"gate_up_EJH": given["gate_up_EJH"][:, :-1]}, "shape of gate_up"),
        ({"experts_TN": given["experts_TN"].long()}, "dtype of experts: got int64"),
        ({"weights_TN": given["weights_TN"][:, :1]}, "shape of weights"),
        ({"x_TH": given["x_TH"].T.contiguous().T}, "strides of x"),
        ({"first_expert": -1}, "first_expert: got -1"),
        ({"activation": "relu"}, "activation: got relu, supported: silu, gelu_pytorch_tanh"),
        ({"counts_E": counts}, "shape of counts"),
    ]
    for change, message in wrong:
        with pytest.raises(UnsupportedError) as caught:
            moe_mlp(**{**given, **change})
        assert message in str(caught.value)
    logits = torch.zeros(2, 5, device=device)
    for change, message in (
        ({"top_k": 6}, "moe_route: top_k: got 6, supported: 1 to 5"),
        ({"logits_TE": logits.double()}, "dtype of logits"),
        ({"logits_TE": torch.zeros(1, 5000, device=device)}, "experts: got 5000"),
    ):
        with pytest.raises(UnsupportedError) as caught:
            moe_route(**{"logits_TE": logits, "top_k": 2, "renormalize": True, **change})
        assert message in str(caught.value)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_a_layer_runs_on_them(
    norm_topk_prob: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on plain torch, with its reads counted."""
    config = tiny_config("qwen3_moe", norm_topk_prob=norm_topk_prob).to_dict()
    spec = spec_from_hf({**config, "architectures": ["Qwen3MoeForCausalLM"]})
    params = {name: x.to(device) for name, x in random_params(spec, torch.float32).items()}
    ranges = rank_ranges(ParallelLayout(), spec, 0)
    x, found, loads = torch.randn(9, spec.hidden_size, device=device), [], []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("SEESAW_KERNELS", backend)
        runs_on.cache_clear()
        layer = MoE(spec, params, 0, ranges, ALONE)
        found.append(layer(x))
        loads.append(layer.loads_E)
    monkeypatch.undo()
    runs_on.cache_clear()
    torch.testing.assert_close(found[1], found[0], atol=2e-5, rtol=2e-5)
    assert torch.equal(*loads)
    assert loads[0].sum() >= spec.num_experts_per_tok


@pytest.mark.parametrize("target", compile_targets().values(), ids=str)
def test_all_blocks_fit_the_gpu_and_both_products_have_the_same_tiles(target: Any) -> None:
    itemsize = {"bfloat16": 2, "float32": 4}
    for dtype, size in itemsize.items():
        for rows in (1, 8, 16, 32, 64, 128):
            key = {"dtype": dtype, "hidden": 2048, "inner": 768, "experts": 64, "rows": rows}
            for config in (
                module.GATE_UP.default(key, target), *module.GATE_UP.candidates(key, target)
            ):  # fmt: skip
                block_m = config.blocks["BLOCK_M"]
                down_key = {**key, "block_m": block_m}
                others = module.DOWN.candidates(down_key, target)
                assert others, "a size of tile with which the second product cannot run"
                for other in (module.DOWN.default(down_key, target), *others):
                    assert other.blocks["BLOCK_M"] == block_m
                    assert stage_bytes(other, 1, size) <= target.shared_memory_bytes
                assert stage_bytes(config, 2, size) <= target.shared_memory_bytes


def stage_bytes(config: Config, matrices: int, itemsize: int) -> int:
    blocks = config.blocks
    rows = blocks["BLOCK_M"] + matrices * blocks["BLOCK_N"]
    return config.num_stages * rows * blocks["BLOCK_K"] * itemsize
