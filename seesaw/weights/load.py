"""Tensors from disk into the decoder's parameters, on a device or in the host image: each is read
once, straight to its place.

Rows are read in chunks and converted chunk by chunk, so that beside the parameters themselves
only a few MB are held; files are not mapped, as mapped pages would count twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from itertools import groupby

import torch

from seesaw.errors import ModelError
from seesaw.families.spec import ModelSpec
from seesaw.layout import stored_params
from seesaw.weights.image import WeightImage
from seesaw.weights.placement import Placement, place
from seesaw.weights.stored import StoredTensor

CHUNK_ELEMENTS = 1 << 18
TRANSPOSED_ROWS = 64
"""Rows that become columns are read in multiples of this, so that whole cache lines are written."""

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all)."""


def load_params(
    spec: ModelSpec,
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """All parameters of the decoder by name, as stored (`layout.stored_params`): what a rank that
    holds the whole model has. Contiguous, of `dtype` on `device`.

    A tied `lm_head.weight` is the embedding's tensor itself. Raises as `fill`.
    """
    params = {
        param.name: torch.empty(param.shape, dtype=dtype, device=device)
        for param in stored_params(spec)
    }
    fill(params, spec, tensors, progress)
    if spec.tie_word_embeddings:
        params["lm_head.weight"] = params["model.embed_tokens.weight"]
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
    fill(params, spec, tensors, progress)


def fill(
    params: Mapping[str, torch.Tensor],
    spec: ModelSpec,
    tensors: Mapping[str, StoredTensor],
    progress: Progress | None = None,
) -> None:
    """Fill `params`, the stored parameters of `spec` by name, from disk; each tensor is read once.

    Raises ModelError where a file ends early.
    """
    stored = {param.name: param for param in stored_params(spec)}
    placements = {param.name: place(spec, param, stored) for param in spec.params}
    wanted = sorted((tensors[name] for name in placements), key=lambda t: (str(t.file), t.offset))
    total, done = sum(t.nbytes for t in wanted), 0
    for path, group in groupby(wanted, key=lambda t: t.file):
        with path.open("rb", buffering=0) as file:
            for tensor in group:
                placement = placements[tensor.name]
                for num_bytes in _load_tensor(file, tensor, placement, params[placement.name]):
                    done += num_bytes
                    if progress is not None:
                        progress(done, total)


def _load_tensor(
    file: FileIO, stored: StoredTensor, placement: Placement, target: torch.Tensor
) -> Iterator[int]:
    """Fill what of `target` comes from `stored`; yields the bytes of each chunk read."""
    plain = _PLAIN.get(stored.encoding)
    direct = (
        plain == target.dtype
        and target.device.type == "cpu"
        and stored.interleaved_head_dim is None
        and not stored.plus_one
        and not placement.transposed
    )
    unit = TRANSPOSED_ROWS if placement.transposed else stored.interleaved_head_dim or 1
    step = max(1, CHUNK_ELEMENTS // max(1, stored.row_elements) // unit) * unit
    into = target.T if placement.transposed else target
    for run in placement.runs:
        for start in range(0, run.num_rows, step):
            count = min(step, run.num_rows - start)
            rows = into[run.target + start : run.target + start + count]
            offset = stored.offset + (run.source + start) * stored.row_bytes
            if direct:
                _read_into(file, stored, offset, rows.view(torch.uint8))
            else:
                rows.copy_(_read_rows(file, stored, offset, count))
            yield count * stored.row_bytes


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
