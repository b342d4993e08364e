"""seesaw and a peer on the same work, alternating, so that a drifting machine hits both alike.

usage: python bench/against_peers.py --model DIR [--peer transformers|vllm] [--rounds 3]
           [--num-prompts 64 --input-len 256 --output-len 64] [--peer-python PYTHON]
           [--output-json FILE]

Each run is a process of its own that loads the model, warms up and times the batch. The figure to
quote is the median of the rounds' ratios, with their range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parent / "peers"


def seesaw_s(args: argparse.Namespace) -> float:
    command = [
        sys.executable, "-m", "seesaw", "bench", "throughput", "--model", args.model,
        "--num-prompts", args.num_prompts, "--input-len", args.input_len,
        "--output-len", args.output_len, "--repeats", 1, "--dtype", "bfloat16",
        "--output-json", "-",
    ]  # fmt: skip
    return float(json.loads(run(command))["elapsed_s"])


def peer_s(args: argparse.Namespace) -> float:
    command = [
        args.peer_python, PEERS / f"bench_{args.peer}.py", "--model", args.model,
        "--num-prompts", args.num_prompts, "--input-len", args.input_len,
        "--output-len", args.output_len, "--repeats", 1,
    ]  # fmt: skip
    if args.peer == "vllm":
        command += ["--bind", "0-1"]
    found = json.loads(run(command).strip().splitlines()[-1])["elapsed_s"]
    return min(found) if isinstance(found, list) else float(found)


def run(command: list[object]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory with safetensors")
    parser.add_argument("--peer", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--output-json", help="write all figures here")
    args = parser.parse_args()

    rounds = []
    for number in range(args.rounds):
        ours, theirs = seesaw_s(args), peer_s(args)
        rounds.append({"seesaw_s": ours, f"{args.peer}_s": theirs, "ratio": theirs / ours})
        print(f"round {number + 1}: seesaw {ours:.2f} s, {args.peer} {theirs:.2f} s, "
              f"ratio {theirs / ours:.2f}", flush=True)  # fmt: skip
    ratios = [entry["ratio"] for entry in rounds]
    print(f"{args.num_prompts} x ({args.input_len} in, {args.output_len} out): seesaw is "
          f"{statistics.median(ratios):.2f} times as fast as {args.peer} "
          f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
    if args.output_json:
        result = {"arguments": vars(args), "rounds": rounds, "ratio": statistics.median(ratios)}
        Path(args.output_json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
