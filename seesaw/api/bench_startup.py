"""Time from a cold process to the first token, by part; each sample in a process of its own.

The measured process runs `child`, with the settings as JSON on standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from seesaw.errors import ConfigError, SeesawError

PROMPT_TOKEN_IDS = [1, 2, 3, 4]
PARTS = ("import_seesaw_s", "import_engine_s", "load_s", "first_token_s")
SETTINGS_ERROR = 2
"""Exit code of a measured process that was given what cannot work."""
_CHILD = """
import time
start = time.perf_counter()
import seesaw
import_seesaw_s = time.perf_counter() - start
from seesaw.api.bench_startup import child
child(import_seesaw_s)
"""


def measure(settings: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    """Figures of the sample with the least total, and every sample under `samples`."""
    # Not at the top: the measured process imports this module before its clock starts.
    from seesaw.api.environment import environment

    samples = [_sample(settings) for _ in range(repeats)]
    return {
        **min(samples, key=lambda sample: sample["total_s"]),
        "samples": samples,
        "settings": dict(settings),
        "environment": environment(),
    }


def _sample(settings: Mapping[str, Any]) -> dict[str, float]:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps(dict(settings)),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    process_s = time.perf_counter() - start
    if done.returncode != 0:
        kind = ConfigError if done.returncode == SETTINGS_ERROR else SeesawError
        raise kind(
            f"bench startup: the measured process ended with {done.returncode}; it says why above."
        )
    sample: dict[str, float] = json.loads(done.stdout)
    sample["total_s"] = sum(sample[part] for part in PARTS)
    sample["process_s"] = process_s
    return sample


def child(import_seesaw_s: float) -> None:
    """The measured process: import, load, draw one token, print the seconds of each as JSON."""
    settings = json.load(sys.stdin)
    start = time.perf_counter()
    try:
        from seesaw.api.llm import LLM
        from seesaw.sampling_params import SamplingParams

        imported = time.perf_counter()
        with LLM(**settings) as llm:
            loaded = time.perf_counter()
            llm.generate(
                [PROMPT_TOKEN_IDS],
                SamplingParams(temperature=0, max_tokens=1, ignore_eos=True),
                use_tqdm=False,
            )
            answered = time.perf_counter()
    except SeesawError as error:
        print(f"seesaw: error: {error}", file=sys.stderr)
        sys.exit(SETTINGS_ERROR if isinstance(error, ConfigError) else 1)
    sample = dict(
        zip(
            PARTS,
            (import_seesaw_s, imported - start, loaded - imported, answered - loaded),
            strict=True,
        )
    )
    print(json.dumps(sample))
