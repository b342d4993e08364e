"""Digests of parameters, by which ranks prove that they hold what a fresh load would give them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def param_hashes(params: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """blake2b of the numbers of each tensor, wherever they lie, as 32 hex digits by name."""
    return {name: _digest(tensor) for name, tensor in params.items()}


def _digest(tensor: torch.Tensor) -> str:
    content = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu()
    return hashlib.blake2b(content.numpy().data, digest_size=16).hexdigest()
