"""The engine on a GPU with a model of random weights in the shape of Llama-3.1-8B: decode steps at
batch 64 over what reading weights and KV takes, the same beside copies over the bus in both
directions at full rate, and the prefill of a long prompt over the matmul rate.

usage: python scripts/gpu_engine.py --output FILE [--layers N]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from seesaw import LLM, SamplingParams  # noqa: E402
from seesaw.api.bench_roofline import StepRecorder  # noqa: E402
from seesaw.measure.cuda_limits import CudaLimits, CudaLimitsProbe  # noqa: E402
from tests.checkpoints import write_tokenizer  # noqa: E402

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 4096, 14336, 32, 32, 8, 128, 128256
BATCH, DECODE_INPUT, DECODE_OUTPUT = 64, 1024, 96
PROMPT = 16384
MOST_STEP = 1.25
MOST_SLOWER = 1.05
LEAST_PREFILL = 0.55
COPY_BYTES = 2**28
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "max_position_embeddings": 2 * PROMPT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- a model ---------------------------------------------------------------------------------------


def layer_bytes() -> int:
    attention = HIDDEN * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS)
    return 2 * (attention + 3 * HIDDEN * INNER)


def fastest_folder() -> str | None:
    """Where a model is written: memory, if whole models fit there; None = the usual place."""
    memory = Path("/dev/shm")
    needed = LAYERS * layer_bytes() + 4 * VOCAB * HIDDEN
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > needed else None


def layers_that_fit(folder: Path) -> int:
    """Of the disk, of host memory (the weight image and the page cache) and of the GPU's memory, a
    third each for the layers' weights."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    room = min(shutil.disk_usage(folder).free, pages, torch.cuda.mem_get_info()[1])
    return max(1, min(LAYERS, room // 3 // layer_bytes()))


def write_model(folder: Path, layers: int) -> None:
    from safetensors.torch import save_file

    generator = torch.Generator("cuda").manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        values = torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda")
        return values.normal_(0.0, columns**-0.5, generator=generator).cpu()

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    files: dict[str, dict[str, torch.Tensor]] = {
        "ends": {
            "model.embed_tokens.weight": matrix(VOCAB, HIDDEN),
            "lm_head.weight": matrix(VOCAB, HIDDEN),
            "model.norm.weight": ones.clone(),
        }
    }
    index: dict[str, str] = {}

    def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, f"{name}.safetensors"))

    write("ends", files["ends"])
    for layer in range(layers):
        at = f"model.layers.{layer}."
        query, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        write(
            f"layer-{layer}",
            {
                at + "self_attn.q_proj.weight": matrix(query, HIDDEN),
                at + "self_attn.k_proj.weight": matrix(kv, HIDDEN),
                at + "self_attn.v_proj.weight": matrix(kv, HIDDEN),
                at + "self_attn.o_proj.weight": matrix(HIDDEN, query),
                at + "mlp.gate_proj.weight": matrix(INNER, HIDDEN),
                at + "mlp.up_proj.weight": matrix(INNER, HIDDEN),
                at + "mlp.down_proj.weight": matrix(HIDDEN, INNER),
                at + "input_layernorm.weight": ones.clone(),
                at + "post_attention_layernorm.weight": ones.clone(),
            },
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    write_tokenizer(folder)


# -- what is measured ------------------------------------------------------------------------------


class Steps:
    """Seconds between the returns of steps, so that steps that overlap count once."""

    def __init__(self, recorder: StepRecorder) -> None:
        self.recorder = recorder
        self.returned: list[float] = []

    def __call__(self, step: Any, seconds: float) -> None:
        before = len(self.recorder.points)
        self.recorder(step, seconds)
        if len(self.recorder.points) > before:
            self.returned.append(time.perf_counter())

    def decode(self, rows: int) -> list[tuple[float, float]]:
        """(seconds, least bytes) of decode steps of `rows` rows that follow such a step."""
        points = self.recorder.points
        kept = [point.kind == "decode" and point.num_rows == rows for point in points]
        return [
            (self.returned[at] - self.returned[at - 1], points[at].num_bytes)
            for at in range(1, len(points))
            if kept[at] and kept[at - 1]
        ]


def run(llm: LLM, prompts: int, input_len: int, output_len: int) -> tuple[float, Steps]:
    """Seconds of one batch of random tokens, and its steps."""
    rng = random.Random(prompts)
    tokens = [[rng.randrange(VOCAB) for _ in range(input_len)] for _ in range(prompts)]
    steps = Steps(StepRecorder.of(llm.engine.spec, "bfloat16"))
    llm.engine.observe_steps(steps)
    sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=output_len)
    start_s = time.perf_counter()
    outputs = llm.generate(tokens, sampling, use_tqdm=False)
    elapsed_s = time.perf_counter() - start_s
    llm.engine.observe_steps(None)
    assert {len(output.outputs[0].token_ids) for output in outputs} == {output_len}
    return elapsed_s, steps


@contextmanager
def copies_both_ways() -> Iterator[Callable[[], float]]:
    """Meanwhile page-locked memory is copied to and from the GPU without a pause. Yields a function
    that says how many bytes per second both ways together took."""
    stop = threading.Event()
    device = [torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2)]
    host = [torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    pairs = ((device[0], host[0]), (host[1], device[1]))
    done = [0, 0]
    start_s = time.perf_counter()

    def work(way: int) -> None:
        target, source = pairs[way]
        stream = torch.cuda.Stream()
        while not stop.is_set():
            with torch.cuda.stream(stream):
                for _ in range(4):
                    target.copy_(source, non_blocking=True)
            stream.synchronize()
            done[way] += 4 * COPY_BYTES

    threads = [threading.Thread(target=work, args=(way,)) for way in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(done) / (time.perf_counter() - start_s)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def goal(what: str, value: float, bound: float, *, most: bool) -> dict[str, Any]:
    met = value <= bound if most else value >= bound
    return {"what": what, "value": value, "most" if most else "least": bound, "met": met}


def measure(llm: LLM, layers: int, limits: CudaLimits) -> dict[str, Any]:
    name = f"8B shape, {layers} of {LAYERS} layers"
    say("warming up: kernels are compiled, graphs recorded")
    run(llm, BATCH, DECODE_INPUT, 8)
    run(llm, 1, PROMPT, 1)
    say("decode")
    _, steps = run(llm, BATCH, DECODE_INPUT, DECODE_OUTPUT)
    found = steps.decode(BATCH)
    step_s = statistics.median(seconds for seconds, _ in found)
    bound_s = statistics.median(num_bytes for _, num_bytes in found) / limits.copy_bytes_per_s
    say("decode beside copies")
    with copies_both_ways() as rate:
        _, beside = run(llm, BATCH, DECODE_INPUT, DECODE_OUTPUT)
        copied_bytes_per_s = rate()
    beside_s = statistics.median(seconds for seconds, _ in beside.decode(BATCH))
    say("prefill")
    prefill_s, prefill = min((run(llm, 1, PROMPT, 1) for _ in range(3)), key=lambda one: one[0])
    flops = sum(point.flops for point in prefill.recorder.points)
    share = flops / prefill_s / limits.bfloat16_flops
    return {
        "layers": layers,
        "decode_step_s": step_s,
        "decode_bound_s": bound_s,
        "num_decode_steps": len(found),
        "decode_step_beside_copies_s": beside_s,
        "copied_bytes_per_s": copied_bytes_per_s,
        "prefill_tokens": PROMPT,
        "prefill_s": prefill_s,
        "prefill_tokens_per_s": PROMPT / prefill_s,
        "prefill_of_matmul": share,
        "limits": dict(limits.figures()),
        "goals": [
            goal(f"{name}: decode step at batch {BATCH} over (weights + KV) / bandwidth",
                 step_s / bound_s, MOST_STEP, most=True),
            goal(f"{name}: the same beside copies both ways over alone", beside_s / step_s,
                 MOST_SLOWER, most=True),
            goal(f"{name}: {PROMPT // 1024}k-token prefill of the matmul rate", share,
                 LEAST_PREFILL, most=False),
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--layers", type=int, help="default: 32, or what fits here")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_engine: torch sees no CUDA device.")
    probe = CudaLimitsProbe(torch.device("cuda", 0))
    limits = probe.measure()
    del probe
    torch.cuda.empty_cache()
    say(limits.describe())
    with tempfile.TemporaryDirectory(prefix="seesaw-gpu-check-", dir=fastest_folder()) as name:
        folder = Path(name)
        layers = asked.layers or layers_that_fit(folder)
        say(f"writing a model of {layers} layers, {layers * layer_bytes() / 2**30:.1f} GiB")
        write_model(folder, layers)
        torch.cuda.empty_cache()
        say("loading it")
        settings: dict[str, Any] = {
            "dtype": "bfloat16",
            "device": "cuda",
            "max_model_len": PROMPT + 64,
            "max_num_seqs": BATCH,
            "max_num_batched_tokens": PROMPT,
            "enable_prefix_caching": False,
        }
        with LLM(str(folder), **settings) as llm:
            figures = measure(llm, layers, limits)
    asked.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
