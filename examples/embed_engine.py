"""The engine inside your own loop: ten lines between your queue and finished answers.

usage: python examples/embed_engine.py MODEL
"""

import sys

from seesaw import Engine, EngineConfig, SamplingParams

if len(sys.argv) != 2:
    sys.exit(__doc__)
with Engine(EngineConfig(model=sys.argv[1])) as engine:
    questions = ["The capital of France is", "Two plus two is", "The sky is"]
    for number, question in enumerate(questions):
        engine.add_request(f"q{number}", question, SamplingParams(temperature=0, max_tokens=8))
    while engine.has_unfinished_requests():
        for output in engine.step():  # add_request and abort_request work from other threads too
            print(output.request_id, output.outputs[0].text)
