"""Decode attention beyond the cases of its op: how rows are shared out, what lies beside the keys,
ragged batches, what is refused, and the door of `ops.paged_attention`."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.errors import UnsupportedError
from seesaw.kernels import merge_splits, paged_decode, tuning
from seesaw.kernels.kernel import Config
from seesaw.kernels.paged_decode import KERNEL, num_splits
from seesaw.kernels.target import compile_targets
from seesaw.ops import OPS
from seesaw.ops.device_rows import DeviceRows
from seesaw.ops.native import native
from seesaw.ops.paged_attention import paged_attention
from seesaw.ops.triton_backend import runs_on
from seesaw.plan.attention_workspace import SPLIT_PROGRAMS
from tests.ops.test_registry import assert_equal, check_call, on

OP = OPS["paged_decode"]
TOLERANCE = OP.tolerance[torch.float32]


@pytest.fixture(autouse=True)
def seed() -> int:
    """Shown by pytest where a test fails."""
    chosen = random.randrange(2**31)
    print(f"seed={chosen}")
    return chosen


def make(
    seed: int, device: str, lens: object, dtype: torch.dtype = torch.float32, **sizes: Any
) -> dict[str, Any]:
    case = {"kv_heads": 2, "group": 3, "head_dim": 16, "block_size": 16, "lse": True, **sizes}
    generator = torch.Generator().manual_seed(seed)
    inputs = OP.make_inputs(generator, {"lens": lens, **case}, dtype)
    return {name: on(device, value) for name, value in inputs.items()}


def launch(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = paged_decode.paged_decode(**inputs)
    return out, lse


def expected(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = OP.reference(**{name: on("cpu", value) for name, value in inputs.items()})
    return out, lse


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What launches have merged: the log-sum-exp of each split, `[R, H, N]`."""
    seen: list[torch.Tensor] = []

    def spy(part: torch.Tensor, lse: torch.Tensor, *others: Any) -> None:
        seen.append(lse.cpu().clone())
        merge_splits.merge_splits(part, lse, *others)

    monkeypatch.setattr(paged_decode, "merge_splits", spy)
    return seen


def shares(least_keys: int, programs_per_sm: int = 16, block_n: int = 16) -> Config:
    blocks = {"BLOCK_N": block_n, "LEAST_KEYS": least_keys, "PROGRAMS_PER_SM": programs_per_sm}
    return Config(blocks, num_warps=4, num_stages=3)


# -- how rows are shared out -----------------------------------------------------------------------


@pytest.mark.parametrize("splits", range(1, 9))
def test_any_number_of_splits_gives_the_same(
    splits: int, seed: int, device: str, parts: list[torch.Tensor]
) -> None:
    inputs = make(seed, device, [splits * 32 - 5, 0, 20], max_seq_len=splits * 32)
    with tuning.forced(KERNEL, shares(least_keys=32)):
        got = launch(inputs)
    assert_equal(on("cpu", got), expected(inputs), TOLERANCE)
    if splits == 1:
        assert not parts
    else:
        used = (parts[0][:, 0] != -float("inf")).sum(1)
        assert used.tolist() == [splits, 0, 1]


@settings(max_examples=15)
@given(data=st.data())
def test_any_shares_of_any_rows_give_the_same(data: st.DataObject, device: str) -> None:
    segments = data.draw(st.integers(1, 3), "segments")
    row = st.lists(st.integers(0, 60), min_size=segments, max_size=segments)
    lens = data.draw(st.lists(row, min_size=1, max_size=4), "lens")
    longest = max(sum(row) for row in lens)
    inputs = make(
        data.draw(st.integers(0, 2**31), "seed"),
        device,
        tuple(map(tuple, lens)),
        kv_heads=data.draw(st.integers(1, 2), "kv_heads"),
        group=data.draw(st.sampled_from([1, 3, 16]), "group"),
        block_size=data.draw(st.sampled_from([1, 6, 16, 32]), "block_size"),
        head_dim=data.draw(st.sampled_from([16, 48]), "head_dim"),
        sliding_window=data.draw(st.none() | st.integers(1, 80), "sliding_window"),
        soft_cap=data.draw(st.none() | st.floats(0.5, 5.0), "soft_cap"),
        # a bound that does not hold costs speed alone
        max_seq_len=data.draw(st.none() | st.integers(1, 2 * longest + 1), "max_seq_len"),
    )
    config = shares(
        data.draw(st.integers(1, 64), "least_keys"),
        data.draw(st.integers(1, 16), "programs_per_sm"),
        data.draw(st.sampled_from([16, 32]), "block_n"),
    )
    with tuning.forced(KERNEL, config):
        got = launch(inputs)
    assert_equal(on("cpu", got), expected(inputs), TOLERANCE)


def test_a_long_row_among_short_ones_is_shared_out(
    seed: int, device: str, parts: list[torch.Tensor]
) -> None:
    if device != "cpu":
        pytest.skip("counts on the size of what the interpreter counts as")
    lens = [512, *[16] * 7]
    inputs = make(seed, device, lens, kv_heads=1, group=1, max_seq_len=512)
    with tuning.forced(KERNEL, shares(least_keys=16, programs_per_sm=8)):
        got = launch(inputs)
    assert_equal(on("cpu", got), expected(inputs), TOLERANCE)
    used = (parts[0][:, 0] != -float("inf")).sum(1)
    # an even batch of 8 would have 32 / 8 = 4 for each row
    assert used.tolist() == [8, *[1] * 7]


def test_the_same_call_gives_the_same_bits(seed: int, device: str) -> None:
    inputs = make(seed, device, [90, 40, 0], kv_heads=1, max_seq_len=96)
    with tuning.forced(KERNEL, shares(least_keys=16)):
        first, again = launch(inputs), launch(inputs)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("splits", [1, 16, 17, 45])
def test_parts_are_weighed_by_their_log_sum_exp(splits: int, seed: int, device: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(3, 2, splits, 24, generator=generator)
    lse = torch.randn(3, 2, splits, generator=generator) * 9
    unused = torch.rand(3, 2, splits, generator=generator) < 0.5
    unused[0], unused[1] = True, False
    parts[unused], lse[unused] = float("nan"), -float("inf")
    out, merged = torch.zeros(3, 2, 24, device=device), torch.zeros(3, 2, device=device)
    merge_splits.merge_splits(parts.to(device), lse.to(device), out, merged, None)
    weights = (lse - lse.logsumexp(2, keepdim=True)).exp().nan_to_num(0.0)
    want = (parts.nan_to_num(0.0) * weights[..., None]).sum(2)
    assert_equal((out.cpu(), merged.cpu()), (want, lse.logsumexp(2)), TOLERANCE)


def test_parts_stay_within_what_is_set_aside_for_them() -> None:
    for target in compile_targets().values():
        key = {"dtype": "bfloat16", "kv_dtype": "bfloat16", "head_dim": 128}
        assert KERNEL.candidates is not None
        for config in (KERNEL.default(key, target), *KERNEL.candidates(key, target)):
            for programs in (1, 7, 64, 4096):
                splits = num_splits(programs, 2**20, target.num_sms, config)
                assert splits * programs <= SPLIT_PROGRAMS + programs


# -- what lies beside the keys ---------------------------------------------------------------------


@pytest.mark.parametrize("fp8", [False, True])
def test_nothing_but_the_keys_has_influence(fp8: bool, seed: int, device: str) -> None:
    inputs = make(seed, device, ((17, 0, 5), (40, 1, 0), (0, 0, 0)), fp8=fp8)
    plain = launch(inputs)
    table, lens = inputs["block_table"], inputs["seq_lens"]
    for name in ("k_cache", "v_cache"):
        cache = inputs[name]
        poisoned = torch.full_like(cache.float(), float("nan")).to(cache.dtype)
        for row, lengths in enumerate(lens.tolist()):
            for segment, length in enumerate(lengths):
                for key in range(length):
                    block = int(table[row, segment, key // 16])
                    poisoned[block, key % 16] = cache[block, key % 16]
        inputs[name] = poisoned
    held = torch.arange(table.shape[-1], device=table.device) < ((lens + 15) // 16)[..., None]
    inputs["block_table"] = torch.where(held, table, 2**31 - 1)
    again = launch(inputs)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_strides_are_those_that_are_given(seed: int, device: str) -> None:
    """q and out within larger tensors, pools that keep heads before tokens, or K apart from V."""
    inputs = make(seed, device, [40, 3, 16])
    want = expected(inputs)
    q = inputs["q_RHD"]
    around = torch.full((len(q), 9, 40), 7.0, device=q.device)
    around[:, 2:8, 8:24] = q
    inputs["q_RHD"] = around[:, 2:8, 8:24]
    inputs["v_cache"] = inputs["v_cache"].contiguous()
    wide = torch.full((len(q), 8, 32), 5.0, device=q.device)
    inputs["out_RHD"] = wide[:, 1:7, :16]
    table = inputs["block_table"]
    inputs["block_table"] = torch.cat([table, table + 99], 1)[:, : table.shape[1]]
    for config in (shares(least_keys=1024), shares(least_keys=16)):
        wide[:, 1:7, :16] = -1.0
        with tuning.forced(KERNEL, config):
            assert_equal(on("cpu", launch(inputs)), want, TOLERANCE)
        untouched = wide.clone()
        untouched[:, 1:7, :16] = 5.0
        assert bool((untouched == 5.0).all())


@pytest.mark.parametrize("least_keys", [1024, 16])
def test_of_a_ragged_batch_rows_of_one_query_are_computed(
    least_keys: int, seed: int, device: str
) -> None:
    inputs = make(seed, device, [40, 33, 0, 5, 64, 0])
    want_out, want_lse = expected(inputs)
    counts = torch.tensor([1, 3, 1, 0, 1, 2])
    starts = torch.cat([torch.zeros(1), counts.cumsum(0)]).int()
    q = torch.randn(int(counts.sum()), 6, 16)
    single = starts[:-1][counts == 1].long()
    q[single] = inputs["q_RHD"].cpu()[counts == 1]
    out, lse = torch.full((8, 6, 16), 9.0).to(device), torch.full((8, 6), 9.0).to(device)
    inputs["block_table"][(counts != 1).to(device)] = 2**31 - 1  # none is looked at
    inputs |= {"q_RHD": q.to(device), "cu_seqlens_q": starts.to(device), "out_RHD": out}
    with tuning.forced(KERNEL, shares(least_keys)):
        got = launch({**inputs, "lse_RH": lse})
    assert got[0] is out
    assert got[1] is lse
    others = torch.ones(8, dtype=torch.bool).scatter(0, single, False)
    assert bool((out.cpu()[others] == 9.0).all())
    assert bool((lse.cpu()[others] == 9.0).all())
    assert_equal(out.cpu()[single], want_out[counts == 1], TOLERANCE)
    assert_equal(lse.cpu()[single], want_lse[counts == 1], TOLERANCE)


# -- what is refused -------------------------------------------------------------------------------


def _changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
    def apply(inputs: dict[str, Any]) -> None:
        inputs[name] = change(inputs[name])

    return apply


def _set(**values: Any) -> Callable[..., None]:
    return lambda inputs: inputs.update(values)


REFUSALS = {
    "dtype of q: got float64": _changed("q_RHD", torch.Tensor.double),
    "dtype of k_cache: got float16": _changed("k_cache", torch.Tensor.half),
    "dtype of v_cache: got float16": _changed("v_cache", torch.Tensor.half),
    "dtype of block_table: got int64": _changed("block_table", torch.Tensor.long),
    "dtype of seq_lens: got int64": _changed("seq_lens", torch.Tensor.long),
    "shapes of block_table and seq_lens": _changed("seq_lens", lambda x: x[:2]),
    "rows of q and seq_lens": _changed("q_RHD", lambda x: x[:2]),
    "shape of q": _changed("q_RHD", lambda x: x[0]),
    "shape of k_cache": _changed("k_cache", lambda x: x[0]),
    "shape of v_cache": _changed("v_cache", lambda x: x[:1]),
    "query and KV heads: got (5, 2)": _changed("q_RHD", lambda x: x[:, :5]),
    "head_dim: got 8": _changed("q_RHD", lambda x: x[..., :8]),
    "strides of q": _changed("q_RHD", lambda x: x.repeat(1, 1, 2)[..., ::2]),
    "strides of k_cache": _changed("k_cache", lambda x: x.repeat(1, 1, 1, 2)[..., ::2]),
    "strides of block_table": _changed("block_table", lambda x: x.repeat(1, 2)[:, ::2]),
    "sliding_window: got 0": _set(sliding_window=0),
    "soft_cap: got 0.0": _set(soft_cap=0.0),
    "k_scale for a pool of: got torch.float32": _set(k_scale_K=torch.ones(2)),
    "dtype of v_scale: got float64": _set(v_scale_K=torch.ones(2).double()),
    "shape of cu_seqlens_q: got [3]": _set(cu_seqlens_q=torch.zeros(3, dtype=torch.int32)),
    "shape of out: got [3, 6, 8]": _set(out_RHD=torch.zeros(3, 6, 8)),
    "strides of lse": _set(lse_RH=torch.zeros(3, 12)[:, ::2].t().contiguous().t()),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_what_kernels_cannot_do_is_refused_by_name(
    message: str, seed: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make(seed, device, [40, 3, 16])
    REFUSALS[message](inputs)
    inputs = {name: on(device, value) for name, value in inputs.items()}
    monkeypatch.setattr(paged_decode, "_launch", None)
    with pytest.raises(UnsupportedError) as refused:
        launch(inputs)
    assert str(refused.value).startswith(f"paged_decode: {message}"), str(refused.value)
    assert "supported: " in str(refused.value)


def test_groups_of_more_than_16_are_refused(seed: int, device: str) -> None:
    with pytest.raises(UnsupportedError, match=r"got \(34, 2\), supported: 1 to 16"):
        launch(make(seed, device, [3], group=17))


# -- configurations --------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [KERNEL, merge_splits.MERGE], ids=lambda kernel: kernel.name)
def test_configurations_are_the_kernels_own(kernel: Any) -> None:
    assert kernel.candidates is not None
    for target in compile_targets().values():
        for build in kernel.builds:
            default = kernel.default(build.key, target)
            tried = kernel.candidates(build.key, target)
            assert default.blocks in [config.blocks for config in tried]
            assert len(set(map(str, tried))) == len(tried)
            assert all(set(config.blocks) <= set(kernel.function.arg_names) for config in tried)


# -- the door of paged_attention -------------------------------------------------------------------


@pytest.fixture
def triton_everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SEESAW_KERNELS", "triton")
    runs_on.cache_clear()
    native.cache_clear()
    yield
    monkeypatch.undo()
    runs_on.cache_clear()
    native.cache_clear()


ATTENTION = OPS["paged_attention"]


@pytest.mark.usefixtures("triton_everywhere")
@pytest.mark.parametrize("index", [0, 1, 2, 9, 13])
def test_any_mix_of_rows_goes_through_kernels(index: int, device: str) -> None:
    check_call(paged_attention, "paged_attention", index, torch.float32, device)


@pytest.mark.usefixtures("triton_everywhere")
def test_rows_that_are_on_the_device_are_taken_from_there(seed: int, device: str) -> None:
    """Also those that pad a batch: one query, no token."""
    case = {"rows": ((1, 20), (2, 9), (1, 3)), "kv_heads": 1, "group": 2, "head_dim": 16}
    case |= {"block_size": 16, "lse": True}
    made = ATTENTION.make_inputs(torch.Generator().manual_seed(seed), case, torch.float32)
    out, lse = ATTENTION.reference(**made)
    made = {name: on(device, value) for name, value in made.items()}
    starts, lens = [*made["cu_seqlens_q"], 5], [*made["seq_lens"], 0]
    rows = DeviceRows.of(starts, lens, torch.device(device))
    padding = torch.ones(1, 2, 16, device=device)
    got_out, got_lse = paged_attention(
        torch.cat([made.pop("q_THD"), padding]),
        made.pop("k_cache"),
        made.pop("v_cache"),
        torch.nn.functional.pad(made.pop("block_table"), (0, 0, 0, 1)),
        **{**made, "cu_seqlens_q": [], "seq_lens": []},
        device_rows=rows,
    )
    assert_equal(on("cpu", (got_out[:4], got_lse[:4])), (out, lse), TOLERANCE)
    assert not got_out[4].any()
    assert bool((got_lse[4] == -float("inf")).all())


@pytest.mark.usefixtures("triton_everywhere")
def test_panels_are_refused_on_kernels_that_do_not_read_them(seed: int, device: str) -> None:
    made = ATTENTION.make_inputs(
        torch.Generator().manual_seed(seed), ATTENTION.cases[1], torch.float32
    )
    made = {name: on(device, value) for name, value in made.items()}
    with pytest.raises(ValueError, match="panels are not read"):
        paged_attention(**made, panels=True)


# -- machine code ----------------------------------------------------------------------------------

_LOOKS = """
import triton
from triton.backends.compiler import GPUTarget
from seesaw.kernels.compiling import _source
from seesaw.kernels.paged_decode import KERNEL
from seesaw.kernels.target import compile_targets
for build in KERNEL.builds[:2]:
    config = KERNEL.default(build.key, compile_targets()[90])
    made = triton.compile(
        _source(KERNEL, build, config), target=GPUTarget("cuda", 90, 32), options=config.options()
    )
    print(made.asm["ptx"].count("cp.async.cg.shared.global"))
"""


def test_keys_and_values_are_read_16_bytes_at_a_time_ahead_of_their_use() -> None:
    """A loop that Triton cannot see through computes the same, many times as slowly."""
    quiet = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    told = subprocess.run(
        [sys.executable, "-c", _LOOKS], env=quiet, capture_output=True, text=True, check=True
    )
    # 8 loads of each thread for a tile: K and V, before the loop and in it
    assert [int(count) >= 32 for count in told.stdout.split()] == [True, True]
