"""CUDA C++ of csrc/cuda: compiled by NVRTC when it is first used, kept under
$SEESAW_CACHE_ROOT/cuda by a hash of source, GPU and compiler.

Compiling needs no driver; loading does. Sources include no header: NVRTC comes without any.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from seesaw import envs
from seesaw.errors import UnsupportedError, nearest
from seesaw.kernels.target import target_of

OPTIONS = ("--std=c++17",)
_PACKAGE = Path(__file__).parents[1]
# in a wheel and in a checkout
_PLACES = (_PACKAGE / "csrc" / "cuda", _PACKAGE.parent / "csrc" / "cuda")


def folder() -> Path:
    """Where the sources are."""
    for place in _PLACES:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"no CUDA sources in {' or '.join(map(str, _PLACES))}")


def sources() -> list[str]:
    """Names of all files, without .cu."""
    return sorted(path.stem for path in folder().glob("*.cu"))


def compile_source(name: str, capability: int) -> bytes:
    """The machine code (cubin) of csrc/cuda/<name>.cu for sm_<capability>. Raises ValueError for an
    unknown name, UnsupportedError where NVRTC is missing or refuses the GPU or the source."""
    nvrtc = _nvrtc()
    program = nvrtc.createProgram(_source(name), f"{name}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*OPTIONS, f"--gpu-architecture=sm_{capability}"))
        # cupy takes the last byte off, as if it ended a string; one too many does no harm
        return bytes(nvrtc.getCUBIN(program)) + b"\0"
    except nvrtc.NVRTCError as error:
        log = str(nvrtc.getProgramLog(program))
        raise UnsupportedError(
            f"{name}.cu for sm_{capability}: NVRTC {_version()} refused it ({error}).\n{log}"
        ) from error
    finally:
        nvrtc.destroyProgram(program)


def cubin(name: str, capability: int) -> bytes:
    """As `compile_source`, from the cache where it is there."""
    path = _cached(name, capability)
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    code = compile_source(name, capability)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Others may be at it as well, or read it meanwhile: it gets its name when it is whole.
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(code)
    os.replace(file.name, path)
    return code


@functools.cache
def function(name: str, kernel: str, device: torch.device) -> Any:
    """`kernel` of csrc/cuda/<name>.cu, loaded on `device`: a `cupy.cuda.Function`, called as
    (grid, block, arguments, stream=...)."""
    return _module(name, device).get_function(kernel)


@functools.cache
def _module(name: str, device: torch.device) -> Any:
    from cupy.cuda import Device
    from cupy.cuda.function import Module

    index = torch.cuda.current_device() if device.index is None else device.index
    module = Module()
    with Device(index):
        module.load(cubin(name, target_of(device).capability))
    return module


def _cached(name: str, capability: int) -> Path:
    content = "\0".join((_source(name), str(capability), *OPTIONS, _version()))
    digest = hashlib.sha256(content.encode()).hexdigest()[:32]
    return envs.cache_root() / "cuda" / f"{name}-sm_{capability}-{digest}.cubin"


def _source(name: str) -> str:
    if name not in sources():
        raise ValueError(f"{name!r} is not in {folder()}.{nearest(name, sources())}")
    return (folder() / f"{name}.cu").read_text()


def _version() -> str:
    return ".".join(map(str, _nvrtc().getVersion()))


@functools.cache
def _nvrtc() -> Any:
    if importlib.util.find_spec("cupy_backends") is None:
        raise UnsupportedError(
            "csrc/cuda is compiled by NVRTC, which cupy brings: pip install 'seesaw-llm[cuda]'."
        )
    from cupy_backends.cuda.libs import nvrtc

    try:
        nvrtc.getVersion()
    except RuntimeError as error:
        raise UnsupportedError(
            f"NVRTC is not installed ({error}): pip install 'seesaw-llm[cuda]'."
        ) from error
    return nvrtc
