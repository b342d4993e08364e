"""Tensors from disk into the decoder's parameters, on a device or in the host image: each is read
once, straight to its place.

Rows are read in chunks and converted chunk by chunk, so that beside the parameters themselves
only a few MB are held; files are not mapped, as mapped pages would count twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from itertools import groupby

import torch

from seesaw.errors import ModelError
from seesaw.families.spec import ModelSpec
from seesaw.layout.format import Order, StoredParam, WeightFormat
from seesaw.layout.panels import PANEL
from seesaw.weights.image import WeightImage
from seesaw.weights.panels import pack
from seesaw.weights.placement import Placement, Run, place
from seesaw.weights.stored import StoredTensor
from seesaw.weights.tied import add_tied_head

CHUNK_ELEMENTS = 1 << 18
PANEL_CHUNK_BYTES = 1 << 21
"""Read at a time on the way into panels: enough for several threads, and still in the cache when
they come to it."""
COLUMNS = 64
"""Rows that become columns are read in multiples of this, so that whole cache lines are written."""

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all)."""


def load_params(
    spec: ModelSpec,
    tensors: Mapping[str, StoredTensor],
    fmt: WeightFormat,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """All parameters of the decoder by name, as `fmt` stores them: what a rank that holds the whole
    model has. Contiguous, of `dtype` on `device`.

    A tied `lm_head.weight` is the embedding's tensor itself. Raises as `fill`.
    """
    params = {
        param.name: torch.empty(param.shape, dtype=dtype, device=device) for param in fmt.params
    }
    fill(params, spec, tensors, fmt, progress)
    add_tied_head(params, fmt)
    return params


def load_image(
    image: WeightImage,
    spec: ModelSpec,
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> None:
    """Fill `image`, whose elements are of `dtype`. Raises as `fill`."""
    params = {param.name: image.view(param, dtype) for param in image.fmt.params}
    fill(params, spec, tensors, image.fmt, progress)


def fill(
    params: Mapping[str, torch.Tensor],
    spec: ModelSpec,
    tensors: Mapping[str, StoredTensor],
    fmt: WeightFormat,
    progress: Progress | None = None,
) -> None:
    """Fill `params`, those of `fmt` by name, from disk; each tensor is read once.

    Raises ModelError where a file ends early.
    """
    placements = {param.name: place(spec, param, fmt) for param in spec.params}
    stored = {param.name: param for param in fmt.params}
    _clear_pads(params, stored, placements)
    wanted = sorted((tensors[name] for name in placements), key=lambda t: (str(t.file), t.offset))
    total, done = sum(t.nbytes for t in wanted), 0
    for path, group in groupby(wanted, key=lambda t: t.file):
        with path.open("rb", buffering=0) as file:
            for tensor in group:
                placement = placements[tensor.name]
                order = stored[placement.name].order
                target = params[placement.name]
                if placement.expert is not None:
                    target = target[placement.expert]
                for num_bytes in _load_tensor(file, tensor, placement, target, order):
                    done += num_bytes
                    if progress is not None:
                        progress(done, total)


def _clear_pads(
    params: Mapping[str, torch.Tensor],
    stored: Mapping[str, StoredParam],
    placements: Mapping[str, Placement],
) -> None:
    """Zero what has columns that no tensor fills."""
    filled = dict.fromkeys(params, 0)
    for placement in placements.values():
        filled[placement.name] += sum(run.num_rows for run in placement.runs)
    for name, tensor in params.items():
        matrix, count = tensor, 1
        if stored[name].cut == "experts":
            matrix, count = tensor[0], len(tensor)
        columns = {"rows": 0, "columns": -1}.get(stored[name].order)
        size = matrix.shape[0] * matrix.shape[2] if columns is None else matrix.shape[columns]
        if filled[name] < count * size:
            tensor.zero_()


def _load_tensor(
    file: FileIO,
    stored: StoredTensor,
    placement: Placement,
    target: torch.Tensor,
    order: Order,
) -> Iterator[int]:
    """Fill what of `target` comes from `stored`; yields the bytes of each chunk read."""
    as_stored = (
        _PLAIN.get(stored.encoding) == target.dtype
        and stored.interleaved_head_dim is None
        and not stored.plus_one
    )
    chunk = CHUNK_ELEMENTS
    if order == "panels" and as_stored:
        chunk = PANEL_CHUNK_BYTES // target.element_size()
    for run in placement.runs:
        direct = as_stored and order == "rows" and target.is_cpu and run.group == run.num_rows
        step = _rows_at_once(stored, run, order, chunk)
        for start in range(0, run.num_rows, step):
            part = run.part(start, min(step, run.num_rows - start))
            offset = stored.offset + part.source * stored.row_bytes
            if direct:
                rows = target[part.target : part.target + part.num_rows]
                _read_into(file, stored, offset, rows.view(torch.uint8))
            else:
                _put(_read_rows(file, stored, offset, part.num_rows), part, target, order)
            yield part.num_rows * stored.row_bytes


def _rows_at_once(stored: StoredTensor, run: Run, order: Order, chunk_elements: int) -> int:
    """About so many elements: whole groups, heads and cache lines."""
    unit = math.lcm(
        stored.interleaved_head_dim or 1,
        run.group if run.group < run.num_rows else 1,
        COLUMNS if order == "columns" else 1,
        PANEL if order == "panels" and run.group == run.num_rows else 1,
    )
    return max(1, chunk_elements // max(1, stored.row_elements) // unit) * unit


def _put(rows: torch.Tensor, run: Run, target: torch.Tensor, order: Order) -> None:
    """Rows of a tensor to their places in a parameter."""
    if order == "panels":
        pack(rows.to(target.dtype), run, target)
        return
    into = target.T if order == "columns" else target
    if run.group == run.num_rows:
        into[run.target : run.target + run.num_rows].copy_(rows)
    else:
        row = torch.arange(run.num_rows, device=target.device)
        into[run.target + row // run.group * run.step + row % run.group] = rows.to(into)


def _read_rows(file: FileIO, stored: StoredTensor, offset: int, count: int) -> torch.Tensor:
    """`count` rows as the checkpoint means them, in float32 or the encoding's own dtype."""
    raw = torch.empty(count * stored.row_bytes, dtype=torch.uint8)
    _read_into(file, stored, offset, raw)
    plain = _PLAIN.get(stored.encoding)
    if plain is not None:
        rows = raw.view(plain).view(count, *stored.row_shape)
    else:
        rows = _dequantize(raw.view(count, -1), stored)
    if (head_dim := stored.interleaved_head_dim) is not None:
        pairs = rows.view(-1, head_dim // 2, 2, *stored.row_shape)
        rows = pairs.transpose(1, 2).reshape(rows.shape)
    return rows.float() - 1.0 if stored.plus_one else rows


def _dequantize(raw: torch.Tensor, stored: StoredTensor) -> torch.Tensor:
    from gguf import GGMLQuantizationType, quants

    # As one row: the library works in groups of a few rows, which is slow for short ones.
    blocks = raw.numpy().reshape(1, -1)
    values = quants.dequantize(blocks, GGMLQuantizationType[stored.encoding])
    return torch.from_numpy(values).view(raw.shape[0], *stored.row_shape)


def _read_into(file: FileIO, stored: StoredTensor, offset: int, target: torch.Tensor) -> None:
    """Fill a contiguous uint8 tensor from `offset` on."""
    view = target.view(-1).numpy().data
    file.seek(offset)
    done = 0
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            raise ModelError(
                f"{stored.file}: ends inside tensor {stored.name}, at byte {offset + done}, "
                f"expected {stored.offset + stored.nbytes} bytes or more. The file is truncated: "
                "download it again."
            )
        done += got
