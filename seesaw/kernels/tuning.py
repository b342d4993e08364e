"""Which configuration a launch takes."""

from __future__ import annotations

import torch

from seesaw.kernels.kernel import Config, Kernel
from seesaw.kernels.target import target_of


def config_for(kernel: Kernel, device: torch.device, **key: int | str) -> Config:
    """The configuration of `kernel` for `key` on `device`; the same for the same arguments."""
    return kernel.default(key, target_of(device))
