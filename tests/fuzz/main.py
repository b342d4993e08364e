"""The fuzz as a command: many seeds on all cores with a summary, or one seed again with all that
happened. Exits with 1 where a seed failed."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

CHUNK = 100
"""Seeds that a process takes at a time."""

Failure = tuple[int, str]


def main() -> None:
    options = _options()
    if options.seed is not None:
        sys.exit(_one(options.seed))
    began_s = time.perf_counter()
    seen: Counter[str] = Counter()
    failures: list[Failure] = []
    count = 0
    for num_played, found, failed in _all(options):
        count += num_played
        seen.update(found)
        failures += failed
        for seed, text in failed:
            print(f"\nseed {seed} failed:\n{text}", flush=True)
        _progress(count, options.seeds, began_s, len(failures))
        if len(failures) >= options.most_failures:
            break
    seconds = time.perf_counter() - began_s
    rate = count / seconds
    print(f"\n{count} seeds in {seconds:.1f} s, {rate:.0f} a second; {len(failures)} failed.")
    print(", ".join(f"{seen[name]} {name}" for name in sorted(seen)))
    for seed, _ in failures:
        print(f"play again: python -m tests.fuzz --seed {seed}")
    if options.output_json:
        figures = {
            "command": " ".join(["python -m tests.fuzz", *sys.argv[1:]]),
            "first_seed": options.start,
            "seeds": count,
            "failed_seeds": [seed for seed, _ in failures],
            "seconds": round(seconds, 1),
            "processes": options.processes,
            "seen": dict(sorted(seen.items())),
        }
        Path(options.output_json).write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(bool(failures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one again and tell what happened")
    parser.add_argument("--seeds", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--start", type=int, default=0, help="the first (default: 0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--most-failures", type=int, default=5, help="stop after so many")
    parser.add_argument("--output-json", help="file for the figures")
    return parser.parse_args()


def _all(options: argparse.Namespace) -> Iterator[tuple[int, Counter[str], list[Failure]]]:
    stop = options.start + options.seeds
    chunks = [range(at, min(at + CHUNK, stop)) for at in range(options.start, stop, CHUNK)]
    if options.processes == 1:
        yield from map(_play, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        yield from pool.imap_unordered(_play, chunks)


def _play(seeds: range) -> tuple[int, Counter[str], list[Failure]]:
    from tests.fuzz.play import play_seed

    seen: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        try:
            seen.update(play_seed(seed).seen)
        except Exception:
            failures.append((seed, traceback.format_exc()))
    return len(seeds), seen, failures


def _progress(count: int, total: int, began_s: float, num_failures: int) -> None:
    rate = count / (time.perf_counter() - began_s)
    left_s = (total - count) / rate
    end = "\r" if sys.stderr.isatty() else "\n"
    if end == "\r" or count % (100 * CHUNK) == 0:
        text = f"{count} of {total} seeds, {rate:.0f} a second, {left_s:.0f} s left"
        print(f"{text}, {num_failures} failed", end=end, file=sys.stderr, flush=True)


def _one(seed: int) -> int:
    from tests.fuzz.play import Play
    from tests.fuzz.scenario import random_scenario

    play = Play(random_scenario(seed))
    try:
        play.play()
    except Exception:
        traceback.print_exc()
        return 1
    print(play.scenario.describe())
    print("\n".join(play.clock.notes))
    print(f"all is well: {dict(sorted(play.seen.items()))}")
    return 0
