"""Measures the memory that one step allocates; run as a process of its own by `test_workspace.py`.

Argument: JSON {spec fields, rows: [[tokens of the step, tokens before it], ..], dtype, settings}.
Prints JSON {peak_bytes, bound_bytes}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from seesaw.families.spec import LayerSpec, ModelSpec, RopeSpec
from seesaw.models.decoder import Decoder
from seesaw.models.inputs import StepInputs
from seesaw.models.workspace import workspace_bytes
from seesaw.ops import logprobs, sample
from tests.models.harness import Rows, random_params
from tests.process_memory import status_bytes

BLOCK_SIZE = 32


def make_spec(fields: dict[str, Any]) -> ModelSpec:
    window, num_layers = fields.pop("sliding_window", None), fields["num_hidden_layers"]
    layer = LayerSpec(window, RopeSpec(1e4))
    return ModelSpec(
        family="test",
        architecture="test",
        max_position_embeddings=2**20,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        torch_dtype="bfloat16",
        layers=(layer,) * num_layers,
        **fields,
    )


@torch.inference_mode()
def step(decoder: Decoder, rows: Rows, inputs: StepInputs, settings: dict[str, float]) -> None:
    num_layers = decoder.spec.num_hidden_layers
    hidden = decoder.run_layers(decoder.embed(inputs.token_ids_T), inputs, rows.kv, 0, num_layers)
    logits = decoder.logits(hidden, inputs.sample_index_S)
    count = len(logits)
    tokens = sample(
        logits,
        temperature_S=torch.full((count,), settings.get("temperature", 0.0)),
        top_k_S=torch.full((count,), int(settings.get("top_k", 0))),
        top_p_S=torch.full((count,), settings.get("top_p", 1.0)),
        min_p_S=torch.zeros(count),
        uniform_S=torch.rand(count, dtype=torch.float64),
    )
    if settings.get("logprobs"):
        logprobs(logits, tokens, 20)


def main() -> None:
    job = json.loads(sys.argv[1])
    dtype = getattr(torch, job["dtype"])
    spec = make_spec(job["spec"])
    decoder = Decoder(spec, random_params(spec, dtype))
    tokens = [torch.zeros(count + before, dtype=torch.int64) for count, before in job["rows"]]
    rows = Rows(decoder, tokens, BLOCK_SIZE)
    rows.kv.pool.zero_()
    counts = [count for count, _ in job["rows"]]
    warm = Rows(decoder, [torch.zeros(40, dtype=torch.int64)], BLOCK_SIZE)
    for count in (20, 1, 1):  # what torch sets up once
        step(decoder, warm, warm.inputs([count]), job["settings"])
    rows.done = [before for _, before in job["rows"]]
    inputs = rows.inputs(counts)
    last = torch.tensor(inputs.cu_seqlens_q_list[1:]) - 1
    inputs.sample_index_S = last
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status_bytes("VmRSS")
    step(decoder, rows, inputs, job["settings"])
    peak = status_bytes("VmHWM") - before
    bound = workspace_bytes(
        spec,
        num_tokens=sum(counts),
        num_sampled=len(counts),
        max_model_len=max(map(sum, job["rows"])),
        block_size=BLOCK_SIZE,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    print(json.dumps({"peak_bytes": peak, "bound_bytes": bound}))


if __name__ == "__main__":
    main()
