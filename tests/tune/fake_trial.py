"""Speaks like `seesaw.tune.trial` without a card. What a configuration does is its BLOCK: 13 wrong,
17 dies, 19 hangs, else it takes 1000 / BLOCK microseconds, where the default takes 10."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

OK = {"why": "", "default_us": 10.0, "noise_us": 0.5}


def answer(request: dict[str, Any]) -> Any:
    if request["do"] == "card":
        return {"device_name": "Fake 9000", "capability": 90, "triton": "3.9", "clocks_mhz": {}}
    block = request["config"]["blocks"]["BLOCK"]
    if block == 13:
        zeros = {"median_us": 0.0, "default_us": 0.0, "noise_us": 0.0}
        return {"status": "wrong", "why": "off by one", **zeros}
    if block == 17:
        print("illegal memory access", file=sys.stderr, flush=True)
        os._exit(3)
    if block == 19:
        time.sleep(3600)
    return {"status": "ok", "median_us": 1000.0 / block, **OK}


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
