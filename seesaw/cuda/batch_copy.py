"""Copies of many runs of bytes by the copy engines, on one stream: one call of the driver where it
has cuMemcpyBatchAsync (since CUDA 12.8), else a call for each.

The batch call can not be captured into a graph and not be used on the legacy default stream. Its
arguments differ between drivers of CUDA 12 and 13; asked for as of 12.8, both have that form.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

BATCH_SINCE = 12080
_SUCCESS, _NOT_SUPPORTED = 0, 801
_SOURCE_READ_IN_STREAM_ORDER = 1
_OVERLAP_WITH_COMPUTE = 1


class Run(NamedTuple):
    """`nbytes` bytes from address `source` to `target`: on the GPU or in page-locked memory of the
    host, of which a run lies in one registered piece."""

    target: int
    source: int
    nbytes: int


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Attributes(ctypes.Structure):
    """CUmemcpyAttributes. Locations matter for managed memory only."""

    _fields_ = (
        ("source_access_order", ctypes.c_int),
        ("source_hint", _Location),
        ("target_hint", _Location),
        ("flags", ctypes.c_uint),
    )


class _Driver:
    """libcuda, which torch has loaded. Raises OSError where there is none."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._batch = self._find_batch()

    def _find_batch(self) -> Any:
        """cuMemcpyBatchAsync as of CUDA 12.8; None where the driver is older."""
        if not hasattr(self._cuda, "cuGetProcAddress_v2"):
            return None
        address, found = ctypes.c_void_p(), ctypes.c_int()
        code = self._cuda.cuGetProcAddress_v2(
            b"cuMemcpyBatchAsync", ctypes.byref(address), ctypes.c_int(BATCH_SINCE),
            ctypes.c_uint64(0), ctypes.byref(found),
        )  # fmt: skip
        if code != _SUCCESS or not address.value:
            return None
        prototype = ctypes.CFUNCTYPE(
            ctypes.c_int,
            ctypes.c_void_p,  # targets
            ctypes.c_void_p,  # sources
            ctypes.c_void_p,  # sizes
            ctypes.c_size_t,  # count
            ctypes.c_void_p,  # attributes
            ctypes.c_void_p,  # from which copy on each of them holds
            ctypes.c_size_t,  # how many attributes
            ctypes.c_void_p,  # receives which one failed
            ctypes.c_void_p,  # stream
        )
        return prototype(address.value)

    def copy(self, runs: Sequence[Run], stream: int) -> None:
        if self._batch is None or not self._copy_batch(runs, stream):
            for run in runs:
                code = self._cuda.cuMemcpyAsync(
                    ctypes.c_uint64(run.target), ctypes.c_uint64(run.source),
                    ctypes.c_size_t(run.nbytes), ctypes.c_void_p(stream),
                )  # fmt: skip
                self._check(code, "cuMemcpyAsync", run)

    def _copy_batch(self, runs: Sequence[Run], stream: int) -> bool:
        """False where the driver has the call and the device does not."""
        count = len(runs)
        words = ctypes.c_uint64 * count
        targets, sources, sizes = (words(*column) for column in zip(*runs, strict=True))
        attributes = _Attributes(
            source_access_order=_SOURCE_READ_IN_STREAM_ORDER, flags=_OVERLAP_WITH_COMPUTE
        )
        first, failed = ctypes.c_size_t(0), ctypes.c_size_t(0)
        code = self._batch(
            targets, sources, sizes, count, ctypes.byref(attributes), ctypes.byref(first), 1,
            ctypes.byref(failed), stream,
        )  # fmt: skip
        if code == _NOT_SUPPORTED:
            self._batch = None
            return False
        self._check(code, "cuMemcpyBatchAsync", runs[min(failed.value, count - 1)])
        return True

    def _check(self, code: int, call: str, run: Run) -> None:
        if code != _SUCCESS:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
            said = (text.value or b"unknown error").decode()
            raise RuntimeError(f"{call}: {said} (error {code}) at {run}")

    def bind(self, index: int) -> None:
        """Make the context that torch uses the current one of this thread, unless it has one."""
        current = ctypes.c_void_p()
        self._cuda.cuCtxGetCurrent(ctypes.byref(current))
        if not current.value:
            # the runtime binds its own at any call that needs one
            torch.cuda.current_stream(index).query()


@functools.cache
def _driver() -> _Driver:
    return _Driver()


def copy_runs(runs: Sequence[Run]) -> None:
    """Begin to copy all `runs`, in any order among each other, on the current stream of the current
    device, which must not be the default one. Raises RuntimeError with what the driver says."""
    if not runs:
        return
    stream = torch.cuda.current_stream()
    assert stream.cuda_stream != 0, "batch copies on the legacy default stream"
    driver = _driver()
    driver.bind(stream.device.index)
    driver.copy(runs, stream.cuda_stream)
