"""Stop strings, siblings and log-probabilities, over a tokenizer of one letter per token."""

from __future__ import annotations

import itertools
import random

import pytest

from seesaw.engine import output_processor
from seesaw.engine.output_processor import OutputProcessor
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import TokenLogprobs
from seesaw.scheduler.request import Request

EOS = 0


class Letters:
    """Token n is the n-th letter; tokens 27 and 28 are the two halves of one letter."""

    def decode(self, token_ids, *, skip_special_tokens=True):
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        return "".join(map(detokenizer.push, token_ids)) + detokenizer.flush()

    def detokenizer(self, *, skip_special_tokens=True):
        return Detokenizer(skip_special_tokens)


class Detokenizer:
    def __init__(self, skip):
        self.skip, self.half = skip, False

    def push(self, token):
        if token == EOS:
            return "" if self.skip else "<eos>"
        if token == 27:
            self.half = True
            return ""
        if token == 28:
            self.half = False
            return "é"
        return chr(96 + token)

    def flush(self):
        return "?" if self.half else ""


def ids(text):
    return [27 if c == "<" else 28 if c == ">" else EOS if c == "." else ord(c) - 96 for c in text]


class Harness:
    def __init__(self, sampling, *, stream=False, n=1, times_tokens=False, arrival_s=0.0):
        self.processor = OutputProcessor(Letters())
        self.requests = [
            Request(
                f"r{i}", [1, 2], sampling, seed=0, eos_token_ids=(EOS,), max_model_len=1000,
                arrival_s=arrival_s,
            )
            for i in range(n)
        ]  # fmt: skip
        self.processor.add("r", "ab", self.requests, stream=stream, times_tokens=times_tokens)
        self.stops = []

    def finish(self, request_id, reason, stop):
        self.stops.append((request_id, stop))
        request = next(r for r in self.requests if r.request_id == request_id)
        request.finish_reason = request.finish_reason or reason

    def feed(self, text, index=0, logprobs=None):
        """As the scheduler does, one token a call, until the request ends."""
        request, outputs = self.requests[index], []
        for token in ids(text):
            if request.finish_reason:
                break
            request.tokens.append(token)
            if request.logprobs is not None:
                request.logprobs.append(logprobs)
            if token in request.end_token_ids:
                request.finish_reason = "stop"
                request.stop_reason = None if token == EOS else token
            elif request.num_output_tokens == request.sampling.max_tokens:
                request.finish_reason = "length"
            outputs += self.processor.process([request], self.finish)
        return outputs


def run(text, **sampling):
    harness = Harness(SamplingParams(**sampling))
    (output,) = harness.feed(text)
    return output.outputs[0], harness


def test_end_of_sequence_is_a_token_but_no_text():
    answer, _ = run("hello.")
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("hello", "stop", None)
    assert answer.token_ids == ids("hello.")


def test_stop_token_is_named_and_shown_only_where_asked_for():
    answer, _ = run("hello", stop_token_ids=[15])
    assert (answer.text, answer.stop_reason) == ("hell", 15)
    shown, _ = run("hello", stop_token_ids=[15], include_stop_str_in_output=True)
    assert shown.text == "hello"


@pytest.mark.parametrize(
    ("stop", "include", "text"),
    [("lo", False, "hel"), ("lo", True, "hello"), ("hello", False, ""), (["x", "e"], False, "h")],
)
def test_stop_string_cuts_the_text_and_ends_the_request(stop, include, text):
    answer, harness = run("hello world.", stop=stop, include_stop_str_in_output=include)
    assert (answer.text, answer.finish_reason) == (text, "stop")
    assert answer.stop_reason in ([stop] if isinstance(stop, str) else stop)
    assert len(harness.stops) == 1
    assert Letters().decode(answer.token_ids).startswith(text)


def test_stop_string_before_min_tokens_does_not_end_it():
    answer, _ = run("aaaab.", stop="a", min_tokens=3)
    assert len(answer.token_ids) == 3


def test_stop_string_wins_over_the_length_limit_at_the_same_token():
    answer, _ = run("hello", stop="lo", max_tokens=5)
    assert (answer.finish_reason, answer.stop_reason) == ("stop", "lo")


def test_tokens_that_arrive_past_a_stop_string_are_dropped():
    harness = Harness(SamplingParams(stop="c", max_tokens=9))
    harness.requests[0].tokens += ids("abcde")  # several at once, as after out-of-order steps
    (output,) = harness.processor.process(harness.requests, harness.finish)
    assert output.outputs[0].text == "ab"
    assert output.outputs[0].token_ids == ids("abc")


def test_a_letter_cut_in_half_is_flushed_at_the_end():
    assert run("a<>b<", stop="zz", max_tokens=5)[0].text == "aéb?"
    assert run("a<>b<", max_tokens=5)[0].text == "aéb?"


def test_detokenize_false_gives_ids_only():
    answer, _ = run("hello.", detokenize=False)
    assert (answer.text, len(answer.token_ids)) == ("", 6)


def test_streaming_never_shows_what_a_stop_string_takes_back():
    rng = random.Random(3)
    for _ in range(300):
        text = "".join(rng.choice("abc<>") for _ in range(rng.randrange(1, 12))).replace("<", "<>")
        stop = ["".join(rng.choice("abc") for _ in range(rng.randrange(1, 4)))]
        sampling = SamplingParams(stop=stop, max_tokens=len(ids(text)))
        outputs = Harness(sampling, stream=True).feed(text)
        (final,) = Harness(sampling).feed(text)
        assert outputs[-1].outputs[0] == final.outputs[0]
        for earlier, later in itertools.pairwise(outputs):
            assert later.outputs[0].text.startswith(earlier.outputs[0].text)
        assert stop[0] not in final.outputs[0].text


def test_siblings_come_together_when_the_last_has_ended():
    harness = Harness(SamplingParams(n=2), n=2)
    assert harness.feed("abc.", 1) == []
    (output,) = harness.feed("x.", 0)
    assert [a.text for a in output.outputs] == ["x", "abc"]
    assert [a.index for a in output.outputs] == [0, 1]
    assert output.finished


def test_abort_returns_what_there_is():
    harness = Harness(SamplingParams(n=2), n=2)
    harness.feed("ab", 0)
    harness.feed("x.", 1)
    assert harness.processor.running("r") == ["r0"]
    harness.requests[0].finish_reason = "abort"
    (output,) = harness.processor.process([harness.requests[0]], harness.finish)
    assert [(a.text, a.finish_reason) for a in output.outputs] == [("ab", "abort"), ("x", "stop")]


def test_logprobs_name_the_drawn_token_even_outside_the_top():
    harness = Harness(SamplingParams(logprobs=2, max_tokens=2))
    entry = TokenLogprobs(-3.0, 9, [5, 6], [-0.5, -1.0])
    (output,) = harness.feed("aa", logprobs=entry)
    first = output.outputs[0].logprobs[0]
    assert {t: (p.logprob, p.rank) for t, p in first.items()} == {
        1: (-3.0, 9), 5: (-0.5, 1), 6: (-1.0, 2),
    }  # fmt: skip
    assert first[1].decoded_token == "a"
    assert output.outputs[0].cumulative_logprob == -6.0


def test_tokens_are_timed_where_asked_for_and_none_past_a_stop_string(monkeypatch):
    ticks = itertools.count(10.0)
    monkeypatch.setattr(output_processor.time, "perf_counter", lambda: next(ticks))
    harness = Harness(SamplingParams(stop="lo"), times_tokens=True, arrival_s=7.0)
    harness.processor.begun(["unknown", "r0"])
    harness.processor.begun(["r0"])
    request = harness.requests[0]
    request.tokens += ids("he")
    assert harness.processor.process([request], harness.finish) == []
    request.tokens += ids("l")
    assert harness.processor.process([request], harness.finish) == []
    request.tokens += ids("op")
    (output,) = harness.processor.process([request], harness.finish)
    assert output.outputs[0].text == "he"
    assert output.outputs[0].token_s == [12.0, 12.0, 13.0, 14.0]
    metrics = output.metrics
    assert (metrics.arrival_s, metrics.scheduled_s, metrics.first_token_s) == (7.0, 10.0, 12.0)
    assert metrics.finished_s == 15.0
    untimed, _ = run("hello.")
    assert untimed.token_s is None
