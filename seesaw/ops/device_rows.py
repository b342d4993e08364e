"""The rows of a step as kernels take them: bounds on the device, and what a launch must know on the
host.

A launch takes its grid from the host numbers alone, so it can be captured in a CUDA graph and
replayed with other rows in the same memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

# Shape letters: R rows.


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """Row r has the queries `cu_seqlens_q[r] .. cu_seqlens_q[r + 1]`, which are the last ones of
    `seq_lens[r]` tokens; a row of `seq_lens` 0 with one query is padding.

    cu_seqlens_q  int32 `[R + 1]`, seq_lens int32 `[R]`, on the device
    max_seqlen_q  no row has more queries
    max_seq_len   no row has more tokens
    num_single    rows of exactly one query
    """

    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor
    max_seqlen_q: int
    max_seq_len: int
    num_single: int

    @classmethod
    def of(cls, cu_seqlens_q: Sequence[int], seq_lens: Sequence[int], device: torch.device) -> Self:
        """From lists on the host; two copies to the device."""
        counts = [stop - start for start, stop in itertools.pairwise(cu_seqlens_q)]
        return cls(
            torch.tensor(cu_seqlens_q, dtype=torch.int32, device=device),
            torch.tensor(seq_lens, dtype=torch.int32, device=device),
            max_seqlen_q=max(counts, default=0),
            max_seq_len=max(seq_lens, default=0),
            num_single=counts.count(1),
        )
