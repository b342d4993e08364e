"""Green contexts: parts of a GPU's SMs with streams of their own, through the driver.

By ctypes, as PyTorch's own can make one part but not the rest beside it. Written against the
driver's documentation (CUDA 12.5 and up); not run on a GPU yet.
"""

from __future__ import annotations

import ctypes

_SM_RESOURCE = 1
_DEFAULT_STREAM = 1
_NON_BLOCKING = 1
_SUCCESS = 0


class NoGreenContexts(Exception):
    """The driver or the card has none; the message says what was tried."""


class _Resource(ctypes.Structure):
    """CUdevResource: 144 bytes, whose layout is the driver's but for the kind and the SM count."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("internal", ctypes.c_ubyte * 92),
        ("num_sms", ctypes.c_uint),
        ("rest", ctypes.c_ubyte * 44),
    )


def make_splits(device: int, units: int, unit_sms: int) -> dict[int, tuple[int, int]]:
    """By number of units from 1 on: handles of two streams, one on so many units and one on all
    other SMs. They last as long as the process. The driver rounds to what clusters of a chip need,
    which differs from chip to chip: sizes that it does not give exactly are left out. Raises
    NoGreenContexts where it gives none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NoGreenContexts(str(error)) from error
    whole = _Resource()
    handle = ctypes.c_int()
    _call(driver, "cuDeviceGet", ctypes.byref(handle), device)
    _call(driver, "cuDeviceGetDevResource", handle, ctypes.byref(whole), _SM_RESOURCE)
    splits = {}
    why = f"{whole.num_sms} SMs are less than two units of {unit_sms}"
    for count in range(1, units):
        try:
            part, rest = _split(driver, whole, count * unit_sms)
            splits[count] = _stream(driver, handle, part), _stream(driver, handle, rest)
        except NoGreenContexts as error:
            why = str(error)
    if not splits:
        raise NoGreenContexts(why)
    return splits


def _split(driver: ctypes.CDLL, whole: _Resource, num_sms: int) -> tuple[_Resource, _Resource]:
    """`num_sms` of them, and the others."""
    part, rest, groups = _Resource(), _Resource(), ctypes.c_uint(1)
    _call(
        driver, "cuDevSmResourceSplitByCount", ctypes.byref(part), ctypes.byref(groups),
        ctypes.byref(whole), ctypes.byref(rest), 0, num_sms,
    )  # fmt: skip
    if groups.value != 1 or part.num_sms != num_sms or not rest.num_sms:
        raise NoGreenContexts(
            f"{num_sms} of {whole.num_sms} SMs were asked for, got {groups.value} parts of "
            f"{part.num_sms} and {rest.num_sms} beside them"
        )
    return part, rest


def _stream(driver: ctypes.CDLL, device: ctypes.c_int, resource: _Resource) -> int:
    described, context, stream = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    _call(driver, "cuDevResourceGenerateDesc", ctypes.byref(described), ctypes.byref(resource), 1)
    _call(driver, "cuGreenCtxCreate", ctypes.byref(context), described, device, _DEFAULT_STREAM)
    _call(driver, "cuGreenCtxStreamCreate", ctypes.byref(stream), context, _NON_BLOCKING, 0)
    assert stream.value is not None, "a stream without a handle"
    return stream.value


def _call(driver: ctypes.CDLL, name: str, *args: object) -> None:
    function = getattr(driver, name, None)
    if function is None:
        raise NoGreenContexts(f"this driver has no {name}")
    status = function(*args)
    if status != _SUCCESS:
        raise NoGreenContexts(f"{name} failed with CUDA error {status}")
