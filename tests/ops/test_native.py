"""Which ops the C++ kernels take, and how they are chosen."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from seesaw.engine.host import cpu_backend
from seesaw.errors import ConfigError
from seesaw.ops.native import native, usable, why_plain_torch


def test_usable() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.zeros(2, dtype=dtype)
        assert usable(x)
        assert usable(x, torch.zeros(0, dtype=dtype))
        assert not usable(x, torch.zeros(2, dtype=torch.float64))
        assert not usable(x, x.to("meta"))
    assert not usable(torch.zeros(2, dtype=torch.float16))
    assert not usable(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2))


@pytest.mark.usefixtures("plain_torch")
def test_plain_torch_has_no_kernels() -> None:
    assert native() is None


def test_unknown_choice_of_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_KERNELS", "cuda")
    native.cache_clear()
    try:
        with pytest.raises(
            ConfigError, match="SEESAW_KERNELS='cuda': expected auto, torch or triton"
        ):
            native()
    finally:
        native.cache_clear()


def test_instruction_set_of_the_environment() -> None:
    """Read once in a process, so each in one of its own."""
    pytest.importorskip("seesaw._cpu")
    code = "from seesaw import _cpu; print(_cpu.isa())"

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            env={"SEESAW_CPU_ISA": name},
            capture_output=True,
            text=True,
        )

    assert run("generic").stdout == "generic\n"
    failed = run("avx9")
    assert failed.returncode == 1
    assert "ValueError: instruction set 'avx9': expected generic" in failed.stderr


def test_an_instruction_set_that_is_none_is_a_mistake_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = pytest.importorskip("seesaw._cpu")

    def isa() -> str:
        raise ValueError("instruction set 'avx9': expected generic")

    monkeypatch.setattr(cpu, "isa", isa)
    native.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"SEESAW_CPU_ISA: instruction set 'avx9'.* Unset it"):
            native()
        assert cpu_backend().startswith("none: SEESAW_CPU_ISA: instruction set 'avx9'")
    finally:
        native.cache_clear()


@pytest.mark.usefixtures("plain_torch")
def test_what_was_asked_for_at_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("seesaw._cpu")
    assert native() is None
    monkeypatch.delenv("SEESAW_KERNELS")
    assert native() is None
    assert "SEESAW_KERNELS=torch" in (why_plain_torch() or "")
