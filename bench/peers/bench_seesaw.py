"""The work of `seesaw bench throughput`, asked for as the peers are; prints one JSON line.

For against_peers.py, which measures run by run; by itself `seesaw bench throughput` says more.
"""

import argparse
import time

from workload import make_parser, measure_all


def parse_arguments() -> argparse.Namespace:
    p = make_parser(__doc__)
    p.add_argument("--tp", type=int, default=1)
    p.add_argument("--pp", type=int, default=1)
    p.add_argument("--dtype", default="bfloat16")
    return p.parse_args()


def main() -> None:
    a = parse_arguments()
    start = time.perf_counter()
    from seesaw import LLM, SamplingParams

    llm = LLM(
        model=a.model,
        tensor_parallel_size=a.tp,
        pipeline_parallel_size=a.pp,
        dtype=a.dtype,
        max_model_len=4096,
        device_memory="3GiB",
        enable_prefix_caching=False,
        device="cpu",
    )
    start_s = time.perf_counter() - start

    def run(batch: list[list[int]], output_len: int) -> None:
        sampling = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
        outputs = llm.generate(batch, sampling, use_tqdm=False)
        got = [len(one.outputs[0].token_ids) for one in outputs]
        assert got == [output_len] * len(batch), got

    with llm:
        measure_all("seesaw", a, start_s, llm.engine.vocab_size, run, tp=a.tp, pp=a.pp)


if __name__ == "__main__":
    main()
