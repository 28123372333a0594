"""From the run directory's growing files into the database, in batches."""

from __future__ import annotations

from itertools import islice

from sqlalchemy import event
from sqlalchemy.orm import Session

from control_plane import results
from control_plane.database import Database
from control_plane.leases import Claim
from dpo_core.run_directory import RunDirectory, Status, read_lines

BATCH = 1000
"""Records per transaction."""


class Relay:
    """Remembers what was relayed of each file; it moves on only after the records were committed."""

    def __init__(self, database: Database, claim: Claim, run: RunDirectory) -> None:
        self._database = database
        self._claim = claim
        self._run = run
        self._metrics_offset = 0
        self._events_offset = 0
        self._status: Status | None = None

    def relay(self) -> None:
        """Brings everything into the database that was written before the call.

        Raises:
            StaleFence: the job is no longer ours; nothing was written.
        """
        more = True
        while more:
            with self._database.transaction() as session:
                more = self.store(session)

    def store(self, session: Session) -> bool:
        """Brings one batch into the database, with the caller's transaction; True when there may be more."""
        metrics = list(islice(read_lines(self._run.metrics_file, self._metrics_offset), BATCH))
        events = list(islice(read_lines(self._run.events_file, self._events_offset), BATCH))
        status = self._run.status()
        if not metrics and not events and status == self._status:
            return False
        # Until it knows its total a run has not begun, and its step 0 would undo what an earlier attempt reached.
        reached = status if status is not None and status.total_steps is not None else None
        results.record(
            session,
            self._claim,
            metrics=[record for record, _ in metrics],
            events=events,
            step=reached.step if reached else None,
            total_steps=reached.total_steps if reached else None,
        )

        def move_on(_: Session) -> None:
            if metrics:
                self._metrics_offset = metrics[-1][1]
            if events:
                self._events_offset = events[-1][1]
            self._status = status

        event.listen(session, "after_commit", move_on, once=True)
        return BATCH in (len(metrics), len(events))
