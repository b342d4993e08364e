"""Paged attention over the KV pools of other engines, without a copy and without seesaw's engine.

    python examples/attention_op.py

The op takes keys and values as views `[num_blocks, block_size, num_kv_heads, head_dim]` of any
strides, so a pool that lies otherwise is transposed, not copied. Here the same KV lies as vLLM's
FlashAttention backend has it and as FlashInfer's HND layout has it; both give the same answer. On a
GPU the Triton kernels compute it, on a CPU the C++ ones.
"""

import torch

import seesaw.ops  # registers torch.ops.seesaw

device = "cuda" if torch.cuda.is_available() else "cpu"
num_blocks, block_size, num_kv_heads, group, head_dim = 64, 16, 2, 4, 64
seq_lens = [37, 5, 130]  # three sequences, each with one new token
num_rows = len(seq_lens)

torch.manual_seed(0)
vllm_pool = torch.randn(
    2, num_blocks, block_size, num_kv_heads, head_dim, device=device, dtype=torch.bfloat16
)
flashinfer_pool = vllm_pool.permute(1, 0, 3, 2, 4).contiguous()  # [blocks, 2, heads, size, dim]

per_row = -(-max(seq_lens) // block_size)
block_table = torch.randperm(num_blocks, device=device)[: num_rows * per_row].int()
block_table = block_table.view(num_rows, per_row)
q = torch.randn(num_rows, num_kv_heads * group, head_dim, device=device, dtype=torch.bfloat16)


def attend(k_cache: torch.Tensor, v_cache: torch.Tensor) -> torch.Tensor:
    out, lse = torch.ops.seesaw.paged_decode(
        q,
        k_cache,
        v_cache,
        block_table,
        torch.tensor(seq_lens, device=device, dtype=torch.int32),
        sm_scale=head_dim**-0.5,
    )
    assert lse.shape == (num_rows, num_kv_heads * group)  # to merge with attention over other KV
    return out


# vLLM: K and V apart, tokens before heads. FlashInfer HND: K beside V, heads before tokens.
ours = attend(vllm_pool[0], vllm_pool[1])
other = attend(
    flashinfer_pool[:, 0].transpose(1, 2),
    flashinfer_pool[:, 1].transpose(1, 2),
)
torch.testing.assert_close(other, ours, atol=2e-2, rtol=2e-2)

# The same in torch alone, one sequence at a time.
for row, length in enumerate(seq_lens):
    blocks = block_table[row, : -(-length // block_size)].long()
    k, v = (vllm_pool[i, blocks].flatten(0, 1)[:length].transpose(0, 1)[None] for i in (0, 1))
    plain = torch.nn.functional.scaled_dot_product_attention(
        q[row][None, :, None], k, v, enable_gqa=True
    )
    torch.testing.assert_close(ours[row], plain[0, :, 0], atol=2e-2, rtol=2e-2)

# The op is known to torch.compile: no graph break.
compiled = torch.compile(attend, backend="eager", fullgraph=True)
torch.testing.assert_close(compiled(vllm_pool[0], vllm_pool[1]), ours)

print(f"{num_rows} rows over two pool layouts on {device}: the same, and as torch computes it")
print("ops:", ", ".join(sorted(seesaw.ops.OPS)))
