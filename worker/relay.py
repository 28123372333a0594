"""From the run directory's growing files into the database, in batches."""

from __future__ import annotations

from itertools import islice
from typing import Any

from control_plane import results
from control_plane.database import Database
from control_plane.leases import Claim
from dpo_core.run_directory import RunDirectory, read_lines

BATCH = 1000
"""Records per transaction."""


class Relay:
    """Remembers how far each file was relayed; an offset moves on only after its records were committed."""

    def __init__(self, database: Database, claim: Claim, run: RunDirectory) -> None:
        self._database = database
        self._claim = claim
        self._run = run
        self._metrics_offset = 0
        self._events_offset = 0

    def relay(self) -> None:
        """Brings everything new into the database.

        Raises:
            StaleFence: the job is no longer ours; nothing was written.
        """
        while self._batch():
            continue

    def _batch(self) -> bool:
        """Relays one batch; True when there was anything."""
        metrics = list(islice(read_lines(self._run.metrics_file, self._metrics_offset), BATCH))
        events = list(islice(read_lines(self._run.events_file, self._events_offset), BATCH))
        if not metrics and not events:
            return False
        status = self._run.status()
        with self._database.transaction() as session:
            results.record(
                session,
                self._claim,
                metrics=_records(metrics),
                events=_records(events),
                step=status.step if status else None,
                total_steps=status.total_steps if status else None,
            )
        if metrics:
            self._metrics_offset = metrics[-1][1]
        if events:
            self._events_offset = events[-1][1]
        return True


def _records(lines: list[tuple[dict[str, Any], int]]) -> list[dict[str, Any]]:
    return [record for record, _ in lines]
