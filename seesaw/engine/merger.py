"""The response merger of one replica: what its ranks report becomes one answer per step and per
transfer.

Reports come in any order, of any step. Knows nothing of processes or requests; tokens drawn past a
stop are dropped by the scheduler, which alone knows where a request ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from seesaw.engine.messages import StepReport, TransferReport
from seesaw.errors import EngineDeadError
from seesaw.scheduler.output import ModelOutput, TransferDone


def _mean(values: Sequence[float | None]) -> float:
    """Of those that there are, 0 without any."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else 0.0


class Merger:
    """Waits for all `num_ranks` reports of a step or transfer."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._steps: dict[int, dict[int, StepReport]] = {}
        self._transfers: dict[int, dict[int, TransferReport]] = {}
        self.weight_bytes: Counter[str] = Counter()
        """Moved by changes of layout so far, by source, over all ranks."""

    def add_step(self, report: StepReport) -> ModelOutput | None:
        """The step's output once its last rank has reported. Raises EngineDeadError where ranks
        that drew the same rows disagree: one of them computes something else."""
        reports = self._steps.setdefault(report.step_id, {})
        assert report.rank not in reports, f"rank {report.rank} reported {report.step_id} twice"
        reports[report.rank] = report
        if len(reports) < self._num_ranks:
            return None
        del self._steps[report.step_id]
        for one in reports.values():
            self.weight_bytes.update(one.weight_bytes)
        drawing = [one for one in reports.values() if one.token_ids is not None]
        first = drawing[0] if drawing else None
        for other in drawing[1:]:
            assert first is not None, "drawing is not empty"
            if other.token_ids != first.token_ids:
                raise EngineDeadError(
                    f"ranks {first.rank} and {other.rank} drew different tokens in step "
                    f"{report.step_id}: {first.token_ids} and {other.token_ids}. Their weights or "
                    "KV differ; this is a fault of seesaw or of the hardware."
                )
        return ModelOutput(
            report.step_id,
            [] if first is None else list(first.token_ids or ()),
            None if first is None else first.logprobs,
            busy_s=max(one.busy_s for one in reports.values()),
            reshard_s=max(one.reshard_s for one in reports.values()),
            stage_wait_s=max(one.stage_wait_s for one in reports.values()),
            visible_s=_mean([one.visible_s for one in reports.values()]),
            parts=max(reports.values(), key=lambda one: one.busy_s).parts,
            expert_loads=sum(one.expert_loads for one in reports.values()),
        )

    def add_transfer(self, report: TransferReport) -> TransferDone | None:
        """What the scheduler hears once the last rank has confirmed."""
        reports = self._transfers.setdefault(report.transfer_id, {})
        assert report.rank not in reports, f"rank {report.rank} confirmed {report} twice"
        reports[report.rank] = report
        if len(reports) < self._num_ranks:
            return None
        del self._transfers[report.transfer_id]
        return TransferDone(
            report.transfer_id,
            sum(one.num_bytes for one in reports.values()),
            max(one.seconds for one in reports.values()),
            sum(one.peer_bytes for one in reports.values()),
        )
