"""A batch job with the fake engine as a process of its own: `fake_job.py OPTIONS_JSON`.

`{"job": {JobOptions}, "engine": {FakeEngine arguments}}`; exits with the job's code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seesaw.batch.job import exit_code_of_error, run
from seesaw.batch.options import JobOptions
from seesaw.errors import SeesawError
from tests.batch.fake_engine import FakeEncoder, FakeEngine

ENGINE_ONLY = ("max_num_seqs", "step_s", "hook")


def run_job(job: dict[str, Any], engine: dict[str, Any] | None = None, **more: Any) -> int:
    engine = engine or {}
    encoder = {name: value for name, value in engine.items() if name not in ENGINE_ONLY}
    try:
        return run(
            JobOptions(**job), lambda: FakeEncoder(**encoder), lambda: FakeEngine(**engine), **more
        ).exit_code
    except SeesawError as error:
        print(error, file=sys.stderr)
        return int(exit_code_of_error(error))


if __name__ == "__main__":
    sys.exit(run_job(**json.loads(sys.argv[1])))
