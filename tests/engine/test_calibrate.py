"""Calibration on tiny sizes: what it writes is read back, whole and plausible; what cannot be
measured is refused before any work; the arithmetic from seconds to rates.

How fast this machine is, is never asserted.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.engine.calibrate import (
    LEAST_CPU_SHARE,
    MOST_SPREAD,
    Calibration,
    Effort,
    Figure,
    Way,
    calibrate,
)
from seesaw.engine.calibrate_cases import Sizes
from seesaw.engine.calibrate_fit import links_of, non_negative_fit, rates_of
from seesaw.engine.calibrate_model import LayerSizes, calibration_spec
from seesaw.engine.calibrate_processes import run_ranks
from seesaw.engine.calibrate_rank import RankTask
from seesaw.engine.calibrate_steps import STEP_KEYS, STEP_LAYERS, STEP_ROWS
from seesaw.engine.host import usable_cores
from seesaw.errors import ConfigError, EngineDeadError
from seesaw.families import spec_from_hf
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.cost_model import CostModel
from seesaw.plan.curve import Curve
from seesaw.plan.machine import Device, Machine, Rates
from seesaw.plan.machine_files import read_machines, write_machines
from seesaw.plan.machine_json import encode_machines
from seesaw.plan.work import WorkCounter

TINY = Effort(
    rounds=2,
    sample_s=0.001,
    sizes=Sizes(
        walk_bytes=2**20,
        copy_bytes=2**18,
        layer=LayerSizes(hidden=128, inner=256, kv_heads=2, group=2, head_dim=32),
        num_layers=3,
        tokens=16,
        matmul_rows=(1, 64),
        decode_rows=((1, 64), (8, 64), (8, 128)),
        prefill_rows=((2, 32, 32), (1, 64, 96)),
    ),
    link_bytes=(2**10, 2**14),
)
NUM_RANKS = min(2, max(1, int(usable_cores())))


@pytest.fixture(scope="module")
def found() -> Calibration:
    return calibrate("a test's machine", device="cpu", num_devices=(NUM_RANKS,), effort=TINY)


def test_the_file_reads_back_and_plans(found: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "machine.json"
    write_machines(path, found.machines)
    (machine,) = read_machines(str(path))
    assert encode_machines((machine,)) == encode_machines(found.machines)
    assert (machine.kind, len(machine.devices)) == ("cpu", NUM_RANKS)
    assert "a test's machine" in machine.name
    assert machine.devices[0].sources["rates"].startswith("measured by seesaw calibrate on 2")
    assert "torch" in machine.devices[0].sources["rates"]
    spec = spec_from_hf(
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
            "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 256,
        },
        "here",
    )  # fmt: skip
    work = WorkCounter(spec).count([(1, 40, True)] * 3)
    for layout in {ParallelLayout(tp=NUM_RANKS), ParallelLayout(pp=NUM_RANKS)}:
        costs = CostModel(spec, machine, layout, "bfloat16")
        assert all(0 < seconds < 60 for seconds in costs.stages_s(work))


def test_figures_are_plausible(found: Calibration) -> None:
    (machine,) = found.machines
    rates, links = machine.devices[0].rates, machine.links
    assert set(rates.matmul_flops) == set(rates.row_matmul_flops) == {"bfloat16"}
    for curve in (rates.matmul_flops["bfloat16"], rates.row_matmul_flops["bfloat16"]):
        assert curve.xs == (1, 64)
        assert 1e3 < curve.ys[0] < curve.ys[-1] < 1e15, "many rows share what is read once"
    for name in (
        "memory_bytes_per_s", "kv_bytes_per_s", "attention_flops", "elementwise_bytes_per_s",
        "load_bytes_per_s", "store_bytes_per_s", "copy_bytes_per_s",
    ):  # fmt: skip
        assert 1e3 < getattr(rates, name) < 1e15, name
    for name in (
        "layer_overhead_s", "step_overhead_s", "row_overhead_keys", "step_row_overhead_s"
    ):  # fmt: skip
        assert 0 <= getattr(rates, name) < 1e6, name
    assert links.send_bytes_per_s > 0 <= links.send_latency_s
    assert links.peer_bytes_per_s > 0
    assert set(links.measured) == set(range(2, NUM_RANKS + 1))
    assert all(curve.xs == (2**10, 2**14) for curve in links.measured.values())


def test_everything_is_measured_on_every_rank_and_round(found: Calibration) -> None:
    (way,) = found.ways
    assert way.num_ranks == NUM_RANKS
    assert 0 < way.cpu_share <= 1.1
    assert all(one.seconds > 0 <= one.spread for one in way.figures.values())
    kinds = {name.split("/")[0] for name in way.figures}
    assert kinds >= {"matmul", "row_matmul", "decode", "prefill", "elementwise", "layers", "steps"}
    assert ({"all_reduce", "send", "peer"} <= kinds) == (NUM_RANKS > 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"dtypes": ("bfloat17",)}, r"dtype='bfloat17'.*Did you mean 'bfloat16'"),
        ({"num_devices": (10**6,)}, r"num_devices=1000000.*Give 1 to \d+"),
        ({"num_devices": (0,)}, r"num_devices=0.*Give 1 to"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(
    arguments: dict[str, tuple[object, ...]], told: str
) -> None:
    heard: list[object] = []
    with pytest.raises(ConfigError, match=told):
        calibrate("x", device="cpu", progress=lambda *now: heard.append(now), **arguments)
    assert heard == []


def test_a_rank_that_fails_is_named_with_its_last_words() -> None:
    task = RankTask(
        rank=0, num_ranks=1, device="cpu", num_threads=1, cores=None, collectives="gloo",
        store_path="", shared_fd=None,
        dtypes=["no_such_dtype"], rounds=2, sample_s=0.001, sizes=TINY.sizes, link_bytes=[],
        exchange_bytes=1,
    )  # fmt: skip
    with pytest.raises(EngineDeadError, match=r"(?s)rank 0 ended with exit code 1.*no_such_dtype"):
        run_ranks(task, 1, lambda done: None)


def figure(name: str, spread: float) -> Figure:
    return Figure(name, 1.0, spread, 1.0)


def test_a_busy_machine_is_complained_of() -> None:
    calm = {name: figure(name, MOST_SPREAD) for name in ("copy", "layers/1")}
    links = {"send/1024": figure("send/1024", 9.0)}
    assert Way(2, 1, calm | links, 1.0).complaint is None
    assert "40%" in (Way(2, 1, calm, 0.4).complaint or "")
    wide = {**calm, "copy": figure("copy", MOST_SPREAD + 0.01)}
    assert "copy" in (Way(2, 1, wide, LEAST_CPU_SHARE).complaint or "")


RATE = st.floats(1e6, 1e14)
SHORT = st.floats(1e-7, 1e-2)


@settings(max_examples=60, deadline=None)
@given(
    flops=st.lists(RATE, min_size=2, max_size=2),
    other=RATE,
    layer_s=SHORT,
    once_s=SHORT,
    step_s=SHORT,
    step_row_s=SHORT,
    row_keys=st.floats(0, 100),
)
def test_rates_are_what_the_seconds_were_made_of(
    flops: list[float], other: float, layer_s: float, once_s: float, step_s: float,
    step_row_s: float, row_keys: float,
) -> None:  # fmt: skip
    sizes = TINY.sizes
    true = Rates(
        matmul_flops={"float32": Curve((1.0, 64.0), tuple(flops))},
        row_matmul_flops={"float32": Curve((1.0, 64.0), tuple(reversed(flops)))},
        memory_bytes_per_s=flops[0] / 2 * 4,
        kv_bytes_per_s=other,
        attention_flops=other,
        elementwise_bytes_per_s=other,
        load_bytes_per_s=other,
        store_bytes_per_s=other,
        copy_bytes_per_s=other,
        layer_overhead_s=layer_s,
        step_overhead_s=step_s,
        row_overhead_keys=row_keys,
        step_row_overhead_s=step_row_s,
    )
    seconds, amounts = seconds_of(true, sizes, once_s)
    found = rates_of(seconds, amounts, ["float32"], sizes)
    # What is left of larger numbers has their rounding.
    whole_s = max(seconds.values())
    for name in ("layer_overhead_s", "step_overhead_s", "step_row_overhead_s"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), abs=1e-6 * whole_s), name
    assert found.row_overhead_keys == pytest.approx(row_keys, rel=1e-4, abs=1e-4)
    for name in (
        "memory_bytes_per_s", "kv_bytes_per_s", "attention_flops", "elementwise_bytes_per_s",
        "load_bytes_per_s", "store_bytes_per_s", "copy_bytes_per_s",
    ):  # fmt: skip
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-4), name
    assert found.matmul_flops["float32"].ys == pytest.approx(flops)
    assert found.row_matmul_flops["float32"].ys == pytest.approx(flops[::-1])
    share = found.attention_flops_by_share
    assert share is not None
    assert share.ys == pytest.approx([other] * len(share.ys))


def seconds_of(
    rates: Rates, sizes: Sizes, once_s: float
) -> tuple[dict[str, float], dict[str, float]]:
    """(seconds, amounts) of all cases on a device of such rates."""
    amounts, seconds = {}, {}
    for kind, curves in (("matmul", rates.matmul_flops), ("row_matmul", rates.row_matmul_flops)):
        for rows, rate in zip((1, 64), curves["float32"].ys, strict=True):
            amounts[f"{kind}/float32/{rows}"] = rows * 1e6
            seconds[f"{kind}/float32/{rows}"] = rows * 1e6 / rate
    for name in ("elementwise", "load", "store", "copy", "prefill/8", "prefill/9.5"):
        amounts[name], seconds[name] = 1e6, 1e6 / rates.kv_bytes_per_s
    key_s = sizes.layer.kv_columns * 4 / rates.kv_bytes_per_s
    for rows, keys in ((1, 1000), (16, 100), (64, 100), (64, 500)):
        amounts[f"decode/{rows}/{keys}"] = rows * keys
        per_row = rates.row_overhead_keys + keys
        seconds[f"decode/{rows}/{keys}"] = 1e-3 * key_s + rows * per_row * key_s
    bare = replace(rates, step_overhead_s=0.0, step_row_overhead_s=0.0)
    layers_s = step_s(bare, sizes, sizes.num_layers, [(1, sizes.block_size + 1, False)])
    seconds["layers/in_one_go"] = once_s + layers_s
    seconds["layers/one_by_one"] = sizes.num_layers * once_s + layers_s
    for count in STEP_ROWS:
        rows = [(1, STEP_KEYS, True)] * count
        seconds[f"steps/{count}"] = step_s(rates, sizes, STEP_LAYERS, rows)
    return seconds, amounts


def step_s(rates: Rates, sizes: Sizes, num_layers: int, rows: list[tuple[int, int, bool]]) -> float:
    spec = calibration_spec(sizes.layer, num_layers, "float32")
    device = Device(slug="d", name="d", kind="cpu", memory_bytes=1, rates=rates)
    links = links_of({}, {}, 1, rates)
    machine = Machine(slug="m", name="m", devices=(device,), links=links, host_memory_bytes=1)
    costs = CostModel(spec, machine, ParallelLayout(), "float32")
    return costs.stage(0, WorkCounter(spec).count(rows)).total_s


@given(latency_s=SHORT, rate=RATE)
def test_links_are_what_the_seconds_were_made_of(latency_s: float, rate: float) -> None:
    sizes, seconds, amounts = (2**10, 2**16, 2**22), {"peer": 0.5}, {"peer": 1e6}
    for ranks in (2, 4):
        for nbytes in sizes:
            seconds[f"all_reduce/{ranks}/{nbytes}"] = ranks * (latency_s + nbytes / rate)
            amounts[f"all_reduce/{ranks}/{nbytes}"] = nbytes
    for nbytes in sizes:
        seconds[f"send/{nbytes}"] = 2 * (latency_s + nbytes / rate)
        amounts[f"send/{nbytes}"] = 2.0 * nbytes
    found = links_of(seconds, amounts, 4, rates=None)  # type: ignore[arg-type]
    for nbytes in sizes:
        expected_s = latency_s + nbytes / rate
        assert found.send_s(nbytes) == pytest.approx(expected_s, rel=1e-6)
        assert found.all_reduce_s(2, nbytes) == pytest.approx(2 * expected_s)
        assert found.all_reduce_s(4, nbytes) == pytest.approx(4 * expected_s)
    assert found.peer_bytes_per_s == 2e6


@given(
    st.lists(
        st.tuples(st.floats(0.1, 1e3), st.floats(0.1, 1e3), st.floats(1e-3, 1e3)),
        min_size=3,
        max_size=8,
    )
)
def test_a_fit_never_goes_below_zero(rows: list[tuple[float, float, float]]) -> None:
    first, second, ys = (list(column) for column in zip(*rows, strict=True))
    fit = non_negative_fit([first, second], ys)
    assert all(math.isfinite(value) and value >= 0 for value in fit)

    def miss(a: float, b: float) -> float:
        return sum(
            ((a * x + b * z) / y - 1) ** 2 for x, z, y in zip(first, second, ys, strict=True)
        )

    best = miss(*fit)
    for change in (0.9, 1.1):
        assert best <= miss(fit[0] * change, fit[1]) + 1e-6
        assert best <= miss(fit[0], fit[1] * change) + 1e-6


def test_a_task_is_the_same_after_its_way_to_the_process() -> None:
    sizes = replace(TINY.sizes, matmul_rows=[1, 64], decode_rows=[[1, 2]], prefill_rows=[[1, 3, 4]])
    task = RankTask(
        rank=1, num_ranks=2, device="cpu", num_threads=None, cores=[0, 2], collectives="shm",
        store_path="/a b", shared_fd=5,
        dtypes=["float32"], rounds=2, sample_s=0.25, sizes=sizes, link_bytes=[1, 2],
        exchange_bytes=3,
    )  # fmt: skip
    assert RankTask.from_json(task.to_json()) == task
