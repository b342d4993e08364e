"""From seconds of runs to the figures of `Rates` and `Links`: sums, slopes and least squares.

Arithmetic only; cases are known by their names (`calibrate_cases`, `calibrate_rank`,
`calibrate_steps`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from seesaw.engine.calibrate_cases import MANY_LAYERS
from seesaw.engine.calibrate_steps import STEP_LAYERS, STEP_ROWS
from seesaw.plan.cost_model import ELEMENT_BYTES
from seesaw.plan.curve import Curve
from seesaw.plan.machine import Links, Rates

Numbers = Mapping[str, float]


def rates_of(seconds: Numbers, amounts: Numbers, dtypes: Sequence[str]) -> Rates:
    """Of one device. `seconds` and `amounts` of a run by case; KV, element-wise operations and
    calls were measured in the first of `dtypes`."""
    matmul = {dtype: _curve(seconds, amounts, f"matmul/{dtype}/") for dtype in dtypes}
    row_matmul = {dtype: _curve(seconds, amounts, f"row_matmul/{dtype}/") for dtype in dtypes}
    layer_s = (seconds[f"layers/{MANY_LAYERS}"] - seconds["layers/1"]) / (MANY_LAYERS - 1)
    _, row_s, byte_s = _decode_fit(seconds, amounts)
    few, many = STEP_ROWS
    few_s, many_s = seconds[f"steps/{few}"], seconds[f"steps/{many}"]
    step_row_s = (many_s - few_s) / (many - few) - STEP_LAYERS * row_s
    step_row_s = max(0.0, step_row_s)
    step_s = few_s - STEP_LAYERS * (layer_s + few * row_s) - few * step_row_s
    return Rates(
        matmul_flops=matmul,
        row_matmul_flops=row_matmul,
        # One row waits for weights alone: 2 operations for each.
        memory_bytes_per_s=max(
            curve.ys[0] / 2 * ELEMENT_BYTES[dtype] for dtype, curve in matmul.items()
        ),
        kv_bytes_per_s=1.0 / byte_s,
        attention_flops=_total_rate(seconds, amounts, "prefill/"),
        elementwise_bytes_per_s=amounts["elementwise"] / seconds["elementwise"],
        load_bytes_per_s=amounts["load"] / seconds["load"],
        store_bytes_per_s=amounts["store"] / seconds["store"],
        copy_bytes_per_s=amounts["copy"] / seconds["copy"],
        layer_overhead_s=max(0.0, layer_s),
        step_overhead_s=max(0.0, step_s),
        row_overhead_s=row_s,
        step_row_overhead_s=step_row_s,
    )


def links_of(seconds: Numbers, amounts: Numbers, num_ranks: int, rates: Rates) -> Links:
    """Between ranks. One rank has none: what nothing asks for is then its own memory's."""
    if num_ranks == 1:
        return Links(
            name="none: one rank",
            bus_bytes_per_s=rates.copy_bytes_per_s,
            latency_s=Curve.flat(rates.layer_overhead_s or 1e-6),
            send_bytes_per_s=rates.copy_bytes_per_s,
            send_latency_s=0.0,
            peer_bytes_per_s=rates.copy_bytes_per_s,
        )
    measured: dict[int, Curve] = {}
    for ranks in range(2, num_ranks + 1):
        points = _points(seconds, amounts, f"all_reduce/{ranks}/")
        if points:
            measured[ranks] = Curve.of(points, f"all_reduce over {ranks} ranks")
    largest = measured[num_ranks].xs[-1]
    latency_s, byte_s = _send_fit(seconds, amounts)
    return Links(
        name="memory of the host",
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


def _decode_fit(seconds: Numbers, amounts: Numbers) -> tuple[float, float, float]:
    """Seconds (of a call, of a row, of a byte) in attention of rows with one query."""
    names = [name for name in seconds if name.startswith("decode/")]
    rows = [float(name.split("/")[1]) for name in names]
    columns = [[1.0] * len(names), rows, [amounts[name] for name in names]]
    call_s, row_s, byte_s = non_negative_fit(columns, [seconds[name] for name in names])
    if byte_s == 0.0:  # as noisy as that, all of it counts as reading
        byte_s = 1.0 / _total_rate(seconds, amounts, "decode/")
        row_s = 0.0
    return call_s, row_s, byte_s


def _send_fit(seconds: Numbers, amounts: Numbers) -> tuple[float, float]:
    """Seconds (of a send, of a byte); a run is there and back."""
    names = [name for name in seconds if name.startswith("send/")]
    columns = [[2.0] * len(names), [amounts[name] for name in names]]
    send_s, byte_s = non_negative_fit(columns, [seconds[name] for name in names])
    if byte_s == 0.0:
        byte_s = 1.0 / _total_rate(seconds, amounts, "send/")
    return send_s, byte_s


def _points(seconds: Numbers, amounts: Numbers, prefix: str) -> list[tuple[float, float]]:
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
