"""Measures the memory that one step allocates; run as a process of its own by `test_workspace.py`.

Argument: JSON {spec fields, rows: [[tokens of the step, tokens before it], ..], dtype, settings;
rank: [layout, rank] where only a slice is run, kernels: whether those of seesaw._cpu run}. Prints
JSON {peak_bytes, bound_bytes}.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import torch

from seesaw.engine.sampler import SamplingState, draw
from seesaw.families.spec import LayerSpec, ModelSpec, RopeSpec
from seesaw.layers.comm import ALONE, Comm
from seesaw.layout import ParallelLayout, rank_ranges
from seesaw.models.cpu_decoder import CpuDecoder
from seesaw.models.decoder import Decoder
from seesaw.models.inputs import StepInputs
from seesaw.plan.workspace import MAX_HANDOVERS, workspace_bytes
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import NewRequest
from tests.models.harness import Rows, random_params
from tests.models.panels import panel_params
from tests.process_memory import status_bytes

BLOCK_SIZE = 32


def make_spec(fields: dict[str, Any]) -> ModelSpec:
    window, num_layers = fields.pop("sliding_window", None), fields["num_hidden_layers"]
    layer = LayerSpec(window, RopeSpec(1e4), sparse="num_experts" in fields)
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


class Copies:
    """A `Comm` whose other ranks are copies of this one: they cost what messages cost."""

    def __init__(self, size: int, rank: int) -> None:
        self.size, self.rank = size, rank

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x.clone() for _ in range(self.size)]


@torch.inference_mode()
def step(
    decoder: Decoder | CpuDecoder,
    comm: Comm,
    rows: Rows,
    inputs: StepInputs,
    settings: dict[str, Any],
) -> None:
    """One step of a rank; of a rank before the last stage, with hand-overs held that are under
    way."""
    layers, spec = decoder.ranges.layers, decoder.spec
    under_way = []
    is_last = layers.stop == spec.num_hidden_layers
    for _ in range(1 if is_last else 1 + MAX_HANDOVERS):
        if layers.start == 0:
            hidden = decoder.embed(inputs.token_ids_T)
        else:
            hidden = torch.zeros(len(inputs.token_ids_T), spec.hidden_size, dtype=decoder.dtype)
        under_way.append(decoder.run_layers(hidden, inputs, rows.kv, *layers))
        del hidden
    if not is_last:
        return
    logits = decoder.logits(under_way.pop(), inputs.sample_index_S)
    params = SamplingParams(**{"temperature": 0, **settings})
    states = [SamplingState(NewRequest("", [], params, row, ())) for row in range(len(logits))]
    draw(logits, states, comm, spec.vocab_size)


def main() -> None:
    job = json.loads(sys.argv[1])
    dtype = getattr(torch, job["dtype"])
    spec = make_spec(job["spec"])
    name, rank = job.get("rank", ["tp1", 0])
    layout = ParallelLayout.parse(name)
    ranges = rank_ranges(layout, spec, rank)
    comm = Copies(layout.tp, layout.coordinates(rank).tp) if layout.tp > 1 else ALONE
    params, kernels = random_params(spec, dtype, ranges=ranges), job.get("kernels", False)
    decoder: Decoder | CpuDecoder
    if kernels:
        decoder = CpuDecoder(spec, panel_params(spec, params), ranges, comm)
    else:
        decoder = Decoder(spec, params, ranges, comm)
    del params
    tokens = [torch.zeros(count + before, dtype=torch.int64) for count, before in job["rows"]]
    rows = Rows(decoder, tokens, BLOCK_SIZE, panels=kernels)
    rows.kv.pool.zero_()
    counts = [count for count, _ in job["rows"]]
    warm = Rows(decoder, [torch.zeros(40, dtype=torch.int64)], BLOCK_SIZE, panels=kernels)
    for count in (20, 1, 1):  # what torch sets up once
        step(decoder, comm, warm, warm.inputs([count]), job["settings"])
    rows.done = [before for _, before in job["rows"]]
    inputs = rows.inputs(counts)
    last = torch.tensor(inputs.cu_seqlens_q_list[1:]) - 1
    inputs.sample_index_S = last
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed before is used first, unseen
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status_bytes("VmRSS")
    step(decoder, comm, rows, inputs, job["settings"])
    peak = status_bytes("VmHWM") - before
    bound = workspace_bytes(
        spec,
        num_tokens=sum(counts),
        num_sampled=len(counts),
        max_model_len=max(map(sum, job["rows"])),
        block_size=BLOCK_SIZE,
        element_bytes=dtype.itemsize,
        kind="cpu",
        ranges=ranges,
    )
    print(json.dumps({"peak_bytes": peak, "bound_bytes": bound}))


if __name__ == "__main__":
    main()
