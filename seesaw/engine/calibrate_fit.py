"""From seconds of runs to the figures of `Rates` and `Links`: sums, slopes and least squares.

Arithmetic only; cases are known by their names (`calibrate_cases`, `calibrate_rank`,
`calibrate_steps`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from seesaw.engine.calibrate_cases import Sizes
from seesaw.engine.calibrate_model import calibration_spec
from seesaw.engine.calibrate_steps import STEP_KEYS, STEP_LAYERS, STEP_ROWS
from seesaw.layout.parallel import ParallelLayout
from seesaw.plan.cost_model import ELEMENT_BYTES, CostModel
from seesaw.plan.curve import Curve
from seesaw.plan.machine import Device, Links, Machine, Rates
from seesaw.plan.work import WorkCounter

Numbers = Mapping[str, float]


def rates_of(seconds: Numbers, amounts: Numbers, dtypes: Sequence[str], sizes: Sizes) -> Rates:
    """Of one device. `seconds` and `amounts` of a run by case; all but matrix products was measured
    in the first of `dtypes`.

    What layers and steps cost beside what `CostModel` knows of is what it leaves of measured ones.
    """
    dtype = dtypes[0]
    matmul = {name: _curve(seconds, amounts, f"matmul/{name}/") for name in dtypes}
    keys_s, row_keys = _decode_fit(seconds, amounts)
    bare = Rates(
        matmul_flops=matmul,
        row_matmul_flops={name: _curve(seconds, amounts, f"row_matmul/{name}/") for name in dtypes},
        # One row waits for weights alone: 2 operations for each.
        memory_bytes_per_s=max(
            curve.ys[0] / 2 * ELEMENT_BYTES[name] for name, curve in matmul.items()
        ),
        kv_bytes_per_s=sizes.layer.kv_columns * ELEMENT_BYTES[dtype] / keys_s,
        row_overhead_keys=row_keys,
        attention_flops=_total_rate(seconds, amounts, "prefill/"),
        attention_flops_by_share=_curve(seconds, amounts, "prefill/"),
        elementwise_bytes_per_s=amounts["elementwise"] / seconds["elementwise"],
        load_bytes_per_s=amounts["load"] / seconds["load"],
        store_bytes_per_s=amounts["store"] / seconds["store"],
        copy_bytes_per_s=amounts["copy"] / seconds["copy"],
        layer_overhead_s=0.0,
        step_overhead_s=0.0,
    )
    count = sizes.num_layers
    all_s = seconds["layers/in_one_go"]
    # Run one by one, each layer but the first pays once more for what a step does once.
    once_s = (seconds["layers/one_by_one"] - all_s) / max(1, count - 1)
    known_s = _known_s(bare, sizes, count, dtype, [(1, sizes.block_size + 1, False)])
    layer_s = max(0.0, (all_s - max(0.0, once_s) - known_s) / count)
    left_s = {
        rows: seconds[f"steps/{rows}"]
        - _known_s(bare, sizes, STEP_LAYERS, dtype, [(1, STEP_KEYS, True)] * rows)
        - STEP_LAYERS * layer_s
        for rows in STEP_ROWS
    }
    few, many = STEP_ROWS
    row_s = max(0.0, (left_s[many] - left_s[few]) / (many - few))
    return replace(
        bare,
        layer_overhead_s=layer_s,
        step_overhead_s=max(0.0, left_s[few] - few * row_s),
        step_row_overhead_s=row_s,
    )


def _known_s(
    rates: Rates, sizes: Sizes, num_layers: int, dtype: str, rows: list[tuple[int, int, bool]]
) -> float:
    """What the cost model makes of a step of the model that was measured, from `rates` alone."""
    spec = calibration_spec(sizes.layer, num_layers, dtype)
    device = Device(slug="one", name="one", kind="cpu", memory_bytes=1, rates=rates)
    links = links_of({}, {}, 1, rates)
    machine = Machine(slug="one", name="one", devices=(device,), links=links, host_memory_bytes=1)
    costs = CostModel(spec, machine, ParallelLayout(), dtype)
    return costs.stage(0, WorkCounter(spec).count(rows)).total_s


def links_of(
    seconds: Numbers, amounts: Numbers, num_ranks: int, rates: Rates, name: str = ""
) -> Links:
    """Between ranks. One rank has none: what nothing asks for is then its own memory's."""
    if num_ranks == 1:
        return Links(
            name="none: one rank",
            bus_bytes_per_s=rates.copy_bytes_per_s,
            latency_s=Curve.flat(1e-6),
            send_bytes_per_s=rates.copy_bytes_per_s,
            send_latency_s=0.0,
            peer_bytes_per_s=rates.copy_bytes_per_s,
        )
    measured: dict[int, Curve] = {}
    for ranks in range(2, num_ranks + 1):
        points = _points(seconds, f"all_reduce/{ranks}/")
        if points:
            measured[ranks] = Curve.of(points, f"all_reduce over {ranks} ranks")
    largest = measured[num_ranks].xs[-1]
    latency_s, byte_s = _send_fit(seconds, amounts)
    return Links(
        name=name,
        bus_bytes_per_s=(2 * (num_ranks - 1) / num_ranks * largest / measured[num_ranks].ys[-1]),
        latency_s=Curve.of([(r, curve.ys[0]) for r, curve in measured.items()], "all_reduce"),
        measured=measured,
        send_bytes_per_s=1.0 / byte_s,
        send_latency_s=latency_s,
        peer_bytes_per_s=amounts["peer"] / seconds["peer"],
    )


def non_negative_fit(columns: Sequence[Sequence[float]], ys: Sequence[float]) -> list[float]:
    """Coefficients, none below 0, for which the columns add up to `ys` (all positive) with the
    least sum of squared relative errors; a column that would need a negative one is left out.
    """
    used = list(range(len(columns)))
    target = torch.ones(len(ys), dtype=torch.float64)
    while True:
        scaled = [[x / y for x, y in zip(columns[k], ys, strict=True)] for k in used]
        matrix = torch.tensor(scaled, dtype=torch.float64).T
        found = torch.linalg.lstsq(matrix, target).solution.tolist()
        least = min(range(len(used)), key=lambda k: found[k])
        if found[least] >= 0 or len(used) == 1:
            break
        del used[least]
    fit = [0.0] * len(columns)
    for k, value in zip(used, found, strict=True):
        fit[k] = max(0.0, value)
    return fit


def _decode_fit(seconds: Numbers, amounts: Numbers) -> tuple[float, float]:
    """Attention of rows with one query: seconds of a key, and what a row costs in keys. What a call
    costs is part of a layer's overhead."""
    names = [name for name in seconds if name.startswith("decode/")]
    rows = [float(name.split("/")[1]) for name in names]
    keys = [amounts[name] for name in names]
    _, row_s, key_s = non_negative_fit(
        [[1.0] * len(names), rows, keys], [seconds[name] for name in names]
    )
    if key_s == 0.0:  # as noisy as that, all of it counts as reading
        return 1.0 / _total_rate(seconds, amounts, "decode/"), 0.0
    return key_s, row_s / key_s


def _send_fit(seconds: Numbers, amounts: Numbers) -> tuple[float, float]:
    """Seconds (of a send, of a byte); a run is there and back."""
    names = [name for name in seconds if name.startswith("send/")]
    columns = [[2.0] * len(names), [amounts[name] for name in names]]
    send_s, byte_s = non_negative_fit(columns, [seconds[name] for name in names])
    if byte_s == 0.0:
        byte_s = 1.0 / _total_rate(seconds, amounts, "send/")
    return send_s, byte_s


def _points(seconds: Numbers, prefix: str) -> list[tuple[float, float]]:
    """(size, seconds) of the cases whose name ends in a size."""
    names = [name for name in seconds if name.startswith(prefix)]
    return sorted((float(name.removeprefix(prefix)), seconds[name]) for name in names)


def _curve(seconds: Numbers, amounts: Numbers, prefix: str) -> Curve:
    """Rates over sizes."""
    names = [name for name in seconds if name.startswith(prefix)]
    points = sorted(
        (float(name.removeprefix(prefix)), amounts[name] / seconds[name]) for name in names
    )
    return Curve.of(points, prefix)


def _total_rate(seconds: Numbers, amounts: Numbers, prefix: str) -> float:
    """Of all such cases together."""
    names = [name for name in seconds if name.startswith(prefix)]
    return sum(amounts[name] for name in names) / sum(seconds[name] for name in names)
