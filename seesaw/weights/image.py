"""The host image: all parameters of a model once per machine, in memory that every rank maps.

What lies where is the format's business (`layout`), what is copied from it that of `reshard.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from seesaw.cuda.batch_copy import Run, copy_runs
from seesaw.hostmem.shared import PAGE_LOCK_BYTES, SharedMemory, new_file
from seesaw.layout.format import StoredParam, WeightFormat
from seesaw.layout.ranges import RankRanges
from seesaw.sizes import format_bytes
from seesaw.weights.tied import add_tied_head

_ADVICE = (
    "Free memory, raise the container's limit, use a smaller dtype or model, or one device, which "
    "needs no copy on the host."
)


class WeightImage(SharedMemory):
    """Parameters in the order and at the offsets of `fmt`. Who creates it fills it (`load_image`)
    and hands `fd` to the ranks, which `attach` it and only read."""

    def __init__(self, fd: int, fmt: WeightFormat, *, writable: bool) -> None:
        """`fd` is the image's from here on. Use `create` or `attach`."""
        super().__init__(fd, fmt.image_bytes, writable=writable, what=_what(fmt), advice=_ADVICE)
        self.fmt = fmt

    @classmethod
    def create(cls, fmt: WeightFormat) -> WeightImage:
        """A new image, backed with memory and all zero. Raises HostMemoryError."""
        fd = new_file("seesaw-weights", fmt.image_bytes, what=_what(fmt), advice=_ADVICE)
        image = cls(fd, fmt, writable=True)
        try:
            image.back(fmt.image_bytes)
        except BaseException:
            image.close()
            raise
        return image

    @classmethod
    def attach(
        cls, fd: int, fmt: WeightFormat, page_lock_for: torch.device | None = None
    ) -> WeightImage:
        """The image of another process, whose file `fd` becomes this one's. Raises HostMemoryError,
        and ValueError where the file is not one of `fmt`.

        `page_lock_for`: a GPU for which to begin to register it with CUDA, in the background. It is
        then mapped writable, since CUDA refuses what is not, else read-only.
        """
        image = cls(fd, fmt, writable=page_lock_for is not None)
        if page_lock_for is not None:
            image.begin_page_lock(page_lock_for, PAGE_LOCK_BYTES)
        return image

    def view(self, param: StoredParam, dtype: torch.dtype) -> torch.Tensor:
        """`param` in its stored shape."""
        start = self.fmt.image_offsets[param.name]
        return self.tensor[start : start + self.fmt.nbytes(param)].view(dtype).view(param.shape)

    def params(self, ranges: RankRanges, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What a rank with `ranges` holds, by name, without a copy: views into the image, which
        live as long as its mapping. Only where the runs of a tensor are not evenly spaced are they
        copied together. A tied `lm_head.weight` is the embedding's tensor itself."""
        params = {
            param.name: self._rank_tensor(param, ranges, dtype)
            for param in self.fmt.params
            if self.fmt.holds(param, ranges)
        }
        add_tied_head(params, self.fmt)
        return params

    def _rank_tensor(
        self, param: StoredParam, ranges: RankRanges, dtype: torch.dtype
    ) -> torch.Tensor:
        shape, window = self.fmt.local_shape(param, ranges), self.fmt.window(param, ranges)
        whole = self.view(param, dtype).view(-1)
        if window is not None:
            return whole.as_strided(
                shape, window.strides, whole.storage_offset() + window.start // dtype.itemsize
            )
        raw = whole.view(torch.uint8)
        runs = self.fmt.runs(param, ranges)
        return (
            torch.cat([raw[run.start : run.start + run.size] for run in runs])
            .view(dtype)
            .view(shape)
        )

    def copy_all(self, wanted: Sequence[tuple[torch.Tensor, int]]) -> None:
        """Fill tensors, contiguous uint8 on one device, each from its offset on; where the image is
        being page-locked, by copy engines in the order of the current stream, which must not be the
        default one, as soon as that has come far enough."""
        if not self.is_page_locking:
            for target, offset in wanted:
                target.copy_(self.tensor[offset : offset + target.nbytes])
            return
        stop = max(offset + target.nbytes for target, offset in wanted)
        if not self.is_page_locked(stop):
            raise ValueError("the image was closed while weights were copied from it")
        base = self.tensor.data_ptr()
        copy_runs(
            [
                Run(target.data_ptr() + start - offset, base + start, nbytes)
                for target, offset in wanted
                for start, nbytes in _within_pieces(offset, target.nbytes)
            ]
        )


def _within_pieces(offset: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of what a range is made of: a CUDA copy must not cross from one registered
    piece to the next."""
    stop = offset + nbytes
    while offset < stop:
        size = min(stop - offset, PAGE_LOCK_BYTES - offset % PAGE_LOCK_BYTES)
        yield offset, size
        offset += size


def _what(fmt: WeightFormat) -> str:
    return f"the weights take {format_bytes(fmt.image_bytes)} of host memory, shared by all ranks"
