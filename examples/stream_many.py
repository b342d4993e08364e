"""A generator of prompts of unknown length, answered with flat memory; bad prompts fail alone.

usage: python examples/stream_many.py MODEL [COUNT]
"""

import sys
from collections.abc import Iterator

from seesaw import LLM, SamplingParams

if not 2 <= len(sys.argv) <= 3:
    sys.exit(__doc__)
COUNT = int(sys.argv[2]) if len(sys.argv) > 2 else 40


def prompts() -> Iterator[str]:
    for number in range(COUNT):
        yield f"The number after {number} is"
    yield ""  # no token at all: this one fails alone


with LLM(sys.argv[1]) as llm:
    sampling = SamplingParams(temperature=0, max_tokens=4)
    answered = 0
    for output in llm.stream(prompts(), sampling, on_error="return"):
        if output.error is not None:
            print("not answered:", output.error)
        else:
            answered += 1
    print("answered", answered)
