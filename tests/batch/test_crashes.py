"""Engines that crash, lose requests or do not start."""

from __future__ import annotations

import logging

import pytest

from seesaw.batch.job import exit_code_of_error
from seesaw.errors import ConfigError, EngineDeadError, JobError
from tests.batch.fake_engine import FakeEngine
from tests.batch.helpers import Jobs, chat, completion, ids, read_rows


def good(n: int) -> list[dict[str, object]]:
    return [chat(f"r{i}", f"question {i}") for i in range(n)]


def test_a_crash_costs_no_row(jobs: Jobs) -> None:
    jobs.write(*good(20), chat("x", "CRASH2"), *(chat(f"s{i}") for i in range(20)))
    assert jobs.run().exit_code == 0
    assert len(ids(jobs.answers)) == 41
    assert len(jobs.engines) == 3
    assert all(engine.num_shutdowns == 1 for engine in jobs.engines)
    assert jobs.summary["this_run"]["engine_restarts"] == 2
    assert "restart 2 of at most 3" in jobs.said.text


def test_a_row_that_kills_every_engine_fails_alone(jobs: Jobs) -> None:
    jobs.write(*good(30), chat("x", "CRASH"), *(chat(f"s{i}") for i in range(10)))
    assert jobs.run().exit_code == 3
    assert len(ids(jobs.answers)) == 40
    (error,) = read_rows(jobs.errors)
    assert error["custom_id"] == "x"
    assert error["response"] is None
    assert error["error"]["code"] == "engine_crash"
    assert (
        "line 31: the engine crashed 3 times with this row in flight" in error["error"]["message"]
    )
    assert jobs.summary["this_run"]["engine_restarts"] <= 3


def test_the_last_crash_needs_no_restart(jobs: Jobs) -> None:
    jobs.write(chat("x", "CRASH"))
    assert jobs.run(max_restarts=2).exit_code == 3
    assert len(jobs.engines) == 3


def test_too_many_crashes_stop_the_job_and_it_resumes(jobs: Jobs) -> None:
    jobs.write(*good(6), chat("x", "CRASH"), chat("y", "CRASH"))
    with pytest.raises(JobError, match=r"crashed 2 times.*max_restarts=1.*resume") as caught:
        jobs.run(max_restarts=1, engine={"max_num_seqs": 2})
    assert exit_code_of_error(caught.value) == 1
    assert jobs.summary["status"] == "failed"
    assert len(jobs.engines) == 2
    runs = 1
    while True:
        runs += 1
        try:
            code = jobs.run(max_restarts=1, engine={"max_num_seqs": 2}).exit_code
        except JobError:
            assert runs < 6, "crashes are remembered, so the culprits are found in the end"
            continue
        break
    assert code == 3
    assert ids(jobs.answers) == [f"r{i}" for i in range(6)]
    assert ids(jobs.errors) == ["x", "y"]


def test_no_restarts_allowed(jobs: Jobs) -> None:
    jobs.write(*good(3), chat("x", "CRASH1"))
    with pytest.raises(JobError, match="crashed 1 times, more than max_restarts=0"):
        jobs.run(max_restarts=0)
    assert jobs.run(max_restarts=0).exit_code == 0


def test_any_other_exception_is_a_crash_with_its_traceback(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("seesaw").propagate = True
    try:
        jobs.write(*good(3), chat("x", "BUG"))
        assert jobs.run().exit_code == 3
    finally:
        logging.getLogger("seesaw").propagate = False
    assert "a bug in the engine" in read_rows(jobs.errors)[0]["error"]["message"]
    assert 'raise ZeroDivisionError("a bug in the engine")' in caplog.text


def test_a_lost_request_is_a_crash_not_a_hang(jobs: Jobs) -> None:
    jobs.write(*good(3), chat("x", "LOST"))
    assert jobs.run().exit_code == 3
    assert ids(jobs.answers) == ["r0", "r1", "r2"]
    assert "the engine lost 1 requests" in read_rows(jobs.errors)[0]["error"]["message"]


def test_rows_the_engine_refuses_fail_alone(jobs: Jobs) -> None:
    jobs.write(chat("a", "REFUSE"), chat("b"), chat("c", "ERROR"), completion("d", "BADTEMPLATE"))
    assert jobs.run().exit_code == 3
    assert ids(jobs.answers) == ["b"]
    errors = {row["custom_id"]: row["response"] for row in read_rows(jobs.errors)}
    assert errors["a"]["status_code"] == errors["c"]["status_code"] == 400
    assert errors["a"]["body"]["error"]["code"] == "refused"
    assert errors["c"]["body"]["error"]["code"] == "engine_error"
    assert errors["d"]["status_code"] == 500
    assert errors["d"]["body"]["error"]["type"] == "server_error"
    assert "KeyError" in errors["d"]["body"]["error"]["message"]


def test_an_engine_that_dies_while_it_starts_again_is_restarted(jobs: Jobs) -> None:
    jobs.write(*good(6), chat("x", "CRASH1"), *(chat(f"s{i}") for i in range(6)))
    starts = []

    def die_the_second_time(point: str) -> None:
        if point == "load":
            starts.append(point)
            if len(starts) == 2:
                raise EngineDeadError("rank 1 was killed")

    with pytest.raises(JobError, match=r"crashed 2 times.*max_restarts=1.*rank 1 was killed"):
        jobs.run(max_restarts=1, engine={"hook": die_the_second_time})
    FakeEngine.generation = 0
    starts.clear()
    assert jobs.run(max_restarts=2, engine={"hook": die_the_second_time}).exit_code == 0
    assert len(starts) == 3
    assert jobs.summary["this_run"]["engine_restarts"] == 2
    assert "rank 1 was killed); restart 2 of at most 2" in jobs.said.text
    assert len(ids(jobs.answers)) == 13


def test_an_engine_that_dies_at_the_first_start_ends_the_job(jobs: Jobs) -> None:
    jobs.write(*good(3))
    starts = []

    def die(point: str) -> None:
        starts.append(point)
        raise EngineDeadError("rank 0 ran out of memory")

    with pytest.raises(EngineDeadError, match="rank 0 ran out of memory"):
        jobs.run(engine={"hook": die})
    assert starts == ["load"]


@pytest.mark.parametrize(
    ("error", "kind"), [(ConfigError("no such model"), ConfigError), (OSError("no"), JobError)]
)
def test_an_engine_that_does_not_start(jobs: Jobs, error: Exception, kind: type[Exception]) -> None:
    jobs.write(*good(3))

    def refuse(point: str) -> None:
        if point == "load":
            raise error

    with pytest.raises(kind, match="no"):
        jobs.run(engine={"hook": refuse})
    assert jobs.summary["exit_code"] == exit_code_of_error(kind("x"))
    assert jobs.run().exit_code == 0
