"""GPUs of this machine, as the driver and the environment tell of them without torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seesaw.engine import at_hand
from seesaw.errors import ConfigError


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["A", "B", "C"]), ("", []), ("2", ["C"]), ("1,0", ["B", "A"]),
        ("0,-1,2", ["A"]), ("0,9,2", ["A"]), ("GPU-c, GPU-a1", ["C", "A"]),
    ],
)  # fmt: skip
def test_gpus_that_processes_would_see(
    visible: str | None, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'GPU-a1, A\\nGPU-b2, B\\nGPU-c3, C\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert at_hand.gpu_names() == expected


def test_a_driver_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert at_hand.gpu_names() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    assert at_hand.gpu_names() == []
    monkeypatch.setattr(at_hand, "NVIDIA_SMI_S", 0.1)
    tool.write_text("#!/bin/sh\nwhile :; do :; done\n")
    with pytest.raises(ConfigError, match="did not answer"):
        at_hand.gpu_names()
