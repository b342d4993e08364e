"""Prefill attention in Triton beyond the ops' cases: tiles of every size, descriptors, chunks, what
lies beyond a sequence, refusals."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seesaw.errors import UnsupportedError
from seesaw.kernels import paged_prefill as paged_module
from seesaw.kernels import prefill_launch
from seesaw.kernels import ragged_prefill as ragged_module
from seesaw.kernels.kernel import Config
from seesaw.kernels.paged_prefill import paged_prefill
from seesaw.kernels.ragged_prefill import ragged_prefill
from seesaw.kernels.target import compile_targets
from seesaw.ops.paged_prefill import OP as PAGED
from seesaw.ops.ragged_prefill import OP as RAGGED

SEED = random.randrange(2**31)
OPS = {"paged": (PAGED, paged_prefill), "ragged": (RAGGED, ragged_prefill)}


@pytest.fixture(autouse=True)
def seeded() -> random.Random:
    print(f"seed {SEED}")
    return random.Random(SEED)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`tiles(m, n, tma)`: both launchers take these instead of their rule's."""

    def choose(block_m: int, block_n: int, use_tma: bool = False) -> None:
        config = Config({"BLOCK_M": block_m, "BLOCK_N": block_n, "USE_TMA": int(use_tma)})
        for module in (paged_module, ragged_module):
            monkeypatch.setattr(module, "config_for", lambda *_, **__: config)

    return choose


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What launches read by descriptor."""
    seen: list[torch.Tensor] = []
    make = prefill_launch._descriptor

    def spy(x: torch.Tensor, *sizes: int) -> Any:
        seen.append(x)
        return make(x, *sizes)

    monkeypatch.setattr(prefill_launch, "_descriptor", spy)
    return seen


def inputs_of(form: str, device: str, **case: Any) -> dict[str, Any]:
    sizes = {"kv_heads": 1, "group": 2, "head_dim": 32, "block_size": 16, **case}
    made = OPS[form][0].make_inputs(torch.Generator().manual_seed(SEED), sizes, torch.float32)
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in made.items()}


def check(form: str, inputs: dict[str, Any]) -> None:
    op, launch = OPS[form]
    on_cpu = {n: x.cpu() if isinstance(x, torch.Tensor) else x for n, x in inputs.items()}
    tolerance = op.tolerance[torch.float32]
    got, wanted = launch(**inputs), op.reference(**on_cpu)
    pairs = zip(got, wanted, strict=True) if inputs["return_lse"] else [(got, wanted)]
    for one, other in pairs:
        torch.testing.assert_close(
            one.cpu(), other, atol=tolerance.atol, rtol=tolerance.rtol, equal_nan=False
        )


@pytest.mark.parametrize("form", OPS)
@pytest.mark.parametrize("use_tma", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("attempt", range(4))
def test_any_tiles(
    form: str,
    use_tma: bool,
    attempt: int,
    device: str,
    tiles: Callable[..., None],
    descriptors: list[torch.Tensor],
) -> None:
    draw = random.Random(SEED + attempt)
    block_size = draw.choice((16, 32, 64))
    rows: list[Any] = [draw.choice((0, 1, 2, draw.randint(3, 40))) for _ in range(3)]
    rows.append(draw.randint(20, 60))
    if form == "paged":
        rows = [(count, count + draw.choice((0, draw.randint(0, 50)))) for count in rows]
    block_m, block_n = draw.choice((16, 32, 64)), draw.choice((16, 32, 64))
    tiles(block_m, block_n, use_tma)
    inputs = inputs_of(
        form,
        device,
        rows=rows,
        kv_heads=draw.choice((1, 2)),
        group=draw.choice((1, 2, 3, 7, 16)),
        head_dim=draw.choice((16, 32, 48)),
        block_size=block_size,
        sliding_window=draw.choice((None, 1, draw.randint(2, 80))),
        soft_cap=draw.choice((None, 2.0)),
        lse=True,
    )
    check(form, inputs)
    fits = form == "ragged" or block_size % block_n == 0
    assert len(descriptors) == (2 if use_tma and fits else 0)


@pytest.mark.parametrize("use_tma", [False, True], ids=["pointers", "descriptors"])
def test_unaligned_keys_are_read_by_pointers(
    use_tma: bool, device: str, tiles: Callable[..., None], descriptors: list[torch.Tensor]
) -> None:
    tiles(32, 16, use_tma)
    inputs = inputs_of("ragged", device, rows=(20,))
    for name in ("k_TKD", "v_TKD"):
        x = inputs[name]
        inputs[name] = torch.empty(len(x), 1, x.shape[2] + 1, device=device)[..., 1:].copy_(x)
    check("ragged", inputs)
    assert not descriptors


@pytest.mark.parametrize("use_tma", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("block_n", [16, 32])
def test_nan_beyond_a_sequence(
    use_tma: bool, window: int | None, block_n: int, device: str, tiles: Callable[..., None]
) -> None:
    """In the rest of its last block, in blocks of nobody, in blocks that only table entries past
    the end name."""
    tiles(32, block_n, use_tma)
    rows = ((13, 45), (1, 17), (5, 5))
    inputs = inputs_of("paged", device, rows=rows, block_size=32, sliding_window=window, lse=True)
    inputs["block_table"] = torch.nn.functional.pad(inputs["block_table"], (0, 2))
    used = torch.zeros(inputs["k_cache"].shape[:2], dtype=torch.bool)
    for row, (_, seq_len) in enumerate(rows):
        for token in range(seq_len):
            used[inputs["block_table"][row, token // 32], token % 32] = True
    wanted = paged_prefill(**inputs)
    for name in ("k_cache", "v_cache"):
        inputs[name][~used.to(device)] = float("nan")
    assert inputs["k_cache"].isnan().any(), "nothing was poisoned"
    for one, other in zip(paged_prefill(**inputs), wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("use_tma", [False, True], ids=["pointers", "descriptors"])
def test_rows_do_not_see_each_other(use_tma: bool, device: str, tiles: Callable[..., None]) -> None:
    tiles(32, 16, use_tma)
    inputs = inputs_of("ragged", device, rows=(11, 21, 6), lse=True)
    wanted = ragged_prefill(**inputs)
    for name in ("q_THD", "k_TKD", "v_TKD"):
        inputs[name][11:32] = float("nan")
    for one, other in zip(ragged_prefill(**inputs), wanted, strict=True):
        assert one[11:32].isnan().all()
        assert torch.equal(one[:11], other[:11])
        assert torch.equal(one[32:], other[32:])


def test_blocks_beyond_two_gi_elements(device: str, tiles: Callable[..., None]) -> None:
    """The pool is mapped, not touched but where the sequence is."""
    tiles(16, 32)
    block_size, size = 16, 32
    num_blocks = 2**31 // (2 * block_size * size) + 2
    pool = torch.empty((num_blocks, 1, 2, block_size, size), dtype=torch.float16, device=device)
    inputs = inputs_of("paged", device, rows=((9, 30),))
    few = inputs["k_cache"], inputs["v_cache"]
    table = inputs["block_table"].clone()
    inputs["q_THD"] = inputs["q_THD"].half()
    inputs["k_cache"], inputs["v_cache"] = (pool[:, :, side].transpose(1, 2) for side in (0, 1))
    inputs["block_table"] = torch.tensor([[num_blocks - 1, num_blocks - 2]], dtype=torch.int32)
    inputs["block_table"] = inputs["block_table"].to(device)
    for here, there in zip(table[0].tolist(), inputs["block_table"][0].tolist(), strict=True):
        for source, target in zip(few, (inputs["k_cache"], inputs["v_cache"]), strict=True):
            target[there] = source[here].half()
    got = paged_prefill(**inputs)
    inputs |= {"k_cache": few[0].half(), "v_cache": few[1].half(), "block_table": table}
    assert torch.equal(got, paged_prefill(**inputs))


def as_pages(x_TKD: torch.Tensor, order: torch.Tensor, block_size: int) -> torch.Tensor:
    """A pool whose blocks `order` hold the tokens."""
    blocks = -(-len(x_TKD) // block_size)
    pool = x_TKD.new_zeros(len(order), block_size, *x_TKD.shape[1:])
    padded = x_TKD.new_zeros(blocks * block_size, *x_TKD.shape[1:])
    padded[: len(x_TKD)] = x_TKD
    pool[order[:blocks].long()] = padded.unflatten(0, (blocks, block_size))
    return pool


@pytest.mark.parametrize("window", [None, 30])
def test_chunks_over_pages_equal_the_whole_prompt(
    window: int | None, device: str, seeded: random.Random, tiles: Callable[..., None]
) -> None:
    tiles(64, 16)
    length, block_size = 75, 16
    cut = seeded.randint(1, length - 1)
    inputs = inputs_of("ragged", device, rows=(length,), group=3, sliding_window=window)
    whole = ragged_prefill(**inputs)
    order = torch.randperm(-(-length // block_size) + 1).to(torch.int32)
    launch = functools.partial(
        paged_prefill,
        k_cache=as_pages(inputs["k_TKD"], order, block_size).to(device),
        v_cache=as_pages(inputs["v_TKD"], order, block_size).to(device),
        block_table=order[None].to(device),
        sm_scale=inputs["sm_scale"],
        sliding_window=window,
    )
    got = [
        launch(
            inputs["q_THD"][start:stop],
            cu_seqlens_q=torch.tensor([0, stop - start], dtype=torch.int32, device=device),
            seq_lens=torch.tensor([stop], dtype=torch.int32, device=device),
            max_seqlen_q=stop - start,
        )
        for start, stop in ((0, length), (0, cut), (cut, length))
    ]
    assert torch.equal(got[0], whole), "the same tiles in the same order"
    torch.testing.assert_close(torch.cat(got[1:]), whole, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("form", OPS)
def test_padding_after_the_last_row_is_left_alone(form: str, device: str) -> None:
    """As in a recorded graph whose batch has rows and tokens to spare."""
    rows = (5, 0, 9) if form == "ragged" else ((5, 8), (0, 0), (9, 9))
    inputs = inputs_of(form, device, rows=rows, lse=True)
    wanted = OPS[form][1](**inputs)
    inputs["q_THD"] = torch.cat([inputs["q_THD"], torch.full_like(inputs["q_THD"], 3.0)])
    for name in ("cu_seqlens", "cu_seqlens_q"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], inputs[name][-1:]])
    if form == "ragged":
        for name in ("k_TKD", "v_TKD"):
            inputs[name] = torch.cat([inputs[name], torch.full_like(inputs[name], float("nan"))])
    else:
        inputs["block_table"] = torch.nn.functional.pad(inputs["block_table"], (0, 0, 0, 1))
        inputs["seq_lens"] = torch.nn.functional.pad(inputs["seq_lens"], (0, 1))
        inputs["out_THD"] = torch.full_like(inputs["q_THD"], 7.0)
    got = OPS[form][1](**inputs)
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one[:14], other)
    if form == "paged":
        assert (got[0][14:] == 7.0).all()


class NoReadBack(TorchDispatchMode):
    """Fails where the host would wait for the device, or a size depend on what lies there."""

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(call)
        assert not re.search("local_scalar|nonzero|equal|is_nonzero|copy|to_copy", name), name
        return call(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", OPS)
def test_a_launch_reads_nothing_back(
    form: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            grids.append(grid)
            return lambda *_, **__: None

    monkeypatch.setattr(prefill_launch, "prefill_kernel", Kernel())
    rows = (9, 30) if form == "ragged" else ((9, 9), (30, 70))
    inputs = inputs_of(form, device, rows=rows, lse=True)
    with NoReadBack():
        OPS[form][1](**inputs)
    assert len(grids) == 1


REFUSED = {
    "head_dim": ({"head_dim": 40}, {}, "head_dim: got 40, supported: 16 to 256 in steps of 16"),
    "group": ({"group": 17}, {}, "query and KV heads: got (17, 1), supported: 1 to 16"),
    "scale": ({}, {"sm_scale": 0.0}, "sm_scale: got 0.0, supported: above 0"),
    "window": ({}, {"sliding_window": 0}, "sliding_window: got 0, supported: None, or at least 1"),
    "cap": ({}, {"soft_cap": 0.0}, "soft_cap: got 0.0, supported: None, or above 0"),
    "dtype": ({}, {"q_THD": torch.double}, "dtype of q: got float64, supported: bfloat16"),
    "mixed": ({}, {"q_THD": torch.half}, "dtype of k: got float32, supported: float16"),
    "table": ({}, {"block_table": torch.int64}, "dtype of block_table: got int64"),
    "lens": ({}, {"seq_lens": torch.int64}, "dtype of seq_lens: got int64, supported: int32"),
    "rows": ({}, {"seq_lens": torch.zeros(3, dtype=torch.int32)}, "shape of seq_lens: got [3]"),
    "scales": ({}, {"k_scale_K": torch.ones(1)}, "k_scale for a pool of: got torch.float32"),
    "out": ({}, {"out_THD": torch.zeros(4, 2, 32)}, "shape of out: got [4, 2, 32]"),
}


@pytest.mark.parametrize("form", OPS)
@pytest.mark.parametrize("name", REFUSED)
def test_refusals_come_before_a_launch(
    form: str, name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefill_launch, "prefill_kernel", None)
    case, changed, words = REFUSED[name]
    inputs = inputs_of(form, device, rows=(5,) if form == "ragged" else ((5, 9),), **case)
    if not inputs.keys() >= changed.keys():
        pytest.skip("only of paged keys")
    for argument, value in changed.items():
        inputs[argument] = (
            inputs[argument].to(value) if isinstance(value, torch.dtype)
            else value.to(device) if isinstance(value, torch.Tensor) else value
        )  # fmt: skip
    with pytest.raises(UnsupportedError) as caught:
        OPS[form][1](**inputs)
    assert f"{form}_prefill: {words}" in str(caught.value)


def test_strided_heads_are_refused(device: str) -> None:
    inputs = inputs_of("ragged", device, rows=(5,))
    inputs["v_TKD"] = torch.empty(5, 1, 64, device=device)[..., ::2]
    with pytest.raises(UnsupportedError, match=r"strides of v: got .*, supported: 1 for"):
        ragged_prefill(**inputs)


@pytest.mark.parametrize("module", [paged_module, ragged_module], ids=["paged", "ragged"])
def test_configurations_fit_every_gpu(module: Any) -> None:
    kernel = module.KERNEL
    for build in kernel.builds:
        for target in compile_targets().values():
            default = kernel.default(build.key, target)
            tried = kernel.candidates(build.key, target)
            assert len(set(map(str, tried))) == len(tried)
            assert str(default) in map(str, tried), (build.key, target)
            for config in tried:
                assert config.blocks["BLOCK_M"] >= 16, "no room for a group of 16"
                assert config.blocks["BLOCK_M"] <= build.key["rows"], "rows for nothing"
                if config.blocks["USE_TMA"]:
                    assert target.has_tma
                    assert build.key.get("block_size", 128) % config.blocks["BLOCK_N"] == 0
