"""Whether a GPU can still be used by this process: after an access out of bounds, every later call
fails with the same error, which says nothing of what makes it.
"""

from __future__ import annotations

import torch


def is_lost() -> bool:
    """For the current device; waits for it. False where this process has used none."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
