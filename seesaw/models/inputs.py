"""Tensors of one step as the decoder and the ops take them. Knows nothing of requests.

Shape letters: T tokens of the step, R rows, S rows that sample, P pages (blocks) of the longest
row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from seesaw.ops.device_rows import DeviceRows


@dataclass(slots=True)
class StepInputs:
    """Rows lie one after another. All on the model's device except the `_list` fields, which hold
    the same on the host.

    token_ids_T, positions_T   int64
    slot_mapping_T             int64, block * block_size + offset of each token's KV
    block_table_RP             int32, padded with 0 (block 0 may belong to anyone: padding is
                               never read as KV)
    cu_seqlens_q_list          R + 1 offsets of the rows in T
    seq_lens_list              tokens per row whose KV is attended to, this step's included
    sample_index_S             int64, index in T of the last token of each row that samples
    rows                       the same bounds of rows for Triton's kernels, which need them; only
                               where they run may the lists be empty
    whole_prompts              each row has all of its tokens in this step
    """

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    slot_mapping_T: torch.Tensor
    block_table_RP: torch.Tensor
    cu_seqlens_q_list: list[int]
    seq_lens_list: list[int]
    sample_index_S: torch.Tensor
    rows: DeviceRows | None = None
    whole_prompts: bool = False
