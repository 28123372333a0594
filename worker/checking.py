"""A check, from its claim to its answer: a short program on the CPU that takes no slot and publishes nothing."""

from __future__ import annotations

import json

from sqlalchemy.orm import Session

from control_plane import checks
from control_plane.checks import Claim
from dpo_core.run_directory import Failure
from worker.check_inputs import collect
from worker.verdict import Ending
from worker.work import Tools, Work


class Checking(Work):
    def __init__(self, tools: Tools, claim: Claim, claimed_at: float) -> None:
        super().__init__(
            tools,
            row_id=claim.check_id,
            fence=claim.fence,
            kind="merge" if claim.kind == "merge" else "check",
            gpus=0,
            lease_seconds=claim.lease_seconds,
            claimed_at=claimed_at,
        )
        self._claim = claim

    def _fetch(self) -> None:
        with self._tools.database.transaction() as session:
            order = checks.work_order(session, self._claim)
        self._run.create(collect(self._tools.storage, order, self._run, self._tools.slots.device))

    def _beat(self, session: Session) -> None:
        checks.renew(session, self._claim)

    def _relay(self) -> None:
        """There is nothing to tell before the answer."""

    def _report(self, session: Session, ending: Ending) -> None:
        if isinstance(ending, Failure):
            checks.fail(session, self._claim, ending, max_attempts=self._tools.settings.max_attempts)
        elif ending == "stopped":
            checks.hand_back(session, self._claim)
        else:
            checks.finish(session, self._claim, json.loads(self._run.answer_file.read_bytes()))
