"""What launchers refuse because of where tensors are."""

from __future__ import annotations

import pytest
import torch

from seesaw.errors import UnsupportedError
from seesaw.kernels import checks
from seesaw.kernels.kernel import Target


def pretend(monkeypatch: pytest.MonkeyPatch, capability: int, current: int) -> None:
    target = Target(capability, 232_448, 132)
    monkeypatch.setattr(checks, "target_of", lambda device: target)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)


def test_tensors_of_the_current_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 90, 1)
    checks.expect_device("op", torch.device("cuda", 1))
    checks.expect_device("op", torch.device("cuda"))


def test_tensors_of_another_gpu_than_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton would launch on the current one, with addresses of the other."""
    pretend(monkeypatch, 90, 0)
    with pytest.raises(UnsupportedError, match=r"op: current device: got cuda:0.*device\(1\)"):
        checks.expect_device("op", torch.device("cuda", 1))


def test_a_gpu_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 75, 0)
    with pytest.raises(UnsupportedError, match="op: GPU: got sm_75, supported: sm_80 or newer"):
        checks.expect_device("op", torch.device("cuda", 0))
