"""Sources of csrc/cuda: compiled for every GPU without one, kept in the cache, found by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from seesaw.errors import UnsupportedError
from seesaw.kernels import nvrtc
from seesaw.kernels.target import compile_targets

pytest.importorskip("cupy_backends")


@pytest.mark.parametrize("capability", compile_targets())
@pytest.mark.parametrize("name", nvrtc.sources())
def test_every_source_compiles_for_every_gpu(name: str, capability: int) -> None:
    code = nvrtc.compile_source(name, capability)
    assert code.startswith(b"\x7fELF")


def test_machine_code_is_kept_by_source_gpu_and_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEESAW_CACHE_ROOT", str(tmp_path))
    name = nvrtc.sources()[0]
    first = nvrtc.cubin(name, 90)
    (kept,) = (tmp_path / "cuda").iterdir()
    assert kept.read_bytes() == first
    monkeypatch.setattr(nvrtc, "compile_source", lambda *_: b"compiled again")
    assert nvrtc.cubin(name, 90) == first
    assert nvrtc.cubin(name, 80) == b"compiled again"
    source = nvrtc._source(name)
    monkeypatch.setattr(nvrtc, "_source", lambda _: source + "// changed\n")
    assert nvrtc.cubin(name, 90) == b"compiled again"
    assert len(list((tmp_path / "cuda").iterdir())) == 3


def test_what_cannot_be_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'copy_piece' is not in .* Did you mean 'copy_pieces'"):
        nvrtc.compile_source("copy_piece", 90)
    with pytest.raises(UnsupportedError, match=r"copy_pieces.cu for sm_37: NVRTC .* refused it"):
        nvrtc.compile_source("copy_pieces", 37)
    monkeypatch.setattr(nvrtc, "_source", lambda _: "__global__ void k() { x = 1; }")
    with pytest.raises(UnsupportedError, match='identifier "x" is undefined'):
        nvrtc.compile_source("copy_pieces", 90)
