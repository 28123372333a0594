"""Run directories that nobody holds: a worker that died left them, or one could not remove them.

Nothing of them may run on, and only their logs are needed. Once nothing does, their leases need not run out: whoever
claims the work next starts no second process of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import ProgrammingError

from control_plane import checks, leases
from control_plane.database import DATABASE_AWAY
from dpo_core.run_directory import RunDirectory
from worker.run_log import RunLog
from worker.sweep import UNKILLABLE_SECONDS, Sweep
from worker.work import Tools

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
EMPTY_LOOKS = 2
"""One may miss a process whose parent started it when both were killed."""
PATIENCE_AT_START = UNKILLABLE_SECONDS
"""For processes to die, before this worker takes work: they may hold its GPUs."""
PATIENCE_LATER = 5.0


class Leftovers:
    def __init__(self, tools: Tools, *, until: Callable[[], bool]) -> None:
        """`until`: whether to look no longer."""
        self._tools, self._until = tools, until
        self._logs_kept: set[Path] = set()
        """Run directories whose logs are in storage, and that could not be removed."""

    def clear_away(self, patience: float) -> None:
        """Returns when no process of them is left, no lease, and no run directory. The logs are in storage then.

        Returns earlier, too, once `until` is true. What can't be cleared away is left to the next look: one of which
        a process lives on for `patience` seconds, as its GPU or file system hangs, or which can't be removed, as while
        its file system takes no writes.
        """
        found = list(self._tools.folders.leftovers())
        try:
            for run in self._swept(found, patience):
                if self._until():
                    return
                self._clear(run)
        finally:
            for run in found:
                self._tools.folders.leave(run)

    def _swept(self, runs: list[RunDirectory], patience: float) -> list[RunDirectory]:
        """Those of which no process is left, after some patience with all of them."""
        left = [_Remains(run) for run in runs]
        swept: list[RunDirectory] = []
        end = time.monotonic() + patience
        while left:
            for remains in left:
                if self._until():
                    return swept
                remains.look()
            swept += [remains.run for remains in left if remains.empty_looks == EMPTY_LOOKS]
            left = [remains for remains in left if remains.can_be_told and remains.empty_looks < EMPTY_LOOKS]
            if time.monotonic() > end:
                for remains in left:
                    if not remains.empty_looks:
                        logger.error("%s, which nobody holds: a process of it lives on after kill -9", remains.run.path)
                left = [remains for remains in left if remains.empty_looks]  # these get their other look
            if left:
                time.sleep(LOOK_SECONDS)
        return swept

    def _clear(self, run: RunDirectory) -> None:
        row_id, fence = run.path.parent.name, int(run.path.name)
        try:
            self._end_lease(run, row_id, fence)
            if run.path not in self._logs_kept:
                # What the last words were of an attempt whose worker died is most worth knowing.
                RunLog(self._tools.storage, row_id, fence, run).keep_last(self._tools.database)
            self._logs_kept.add(run.path)
            self._tools.folders.remove(run)
            self._logs_kept.discard(run.path)
        except Exception:  # whatever it is, the others are cleared away
            logger.exception("%s, which nobody holds, can't be cleared away", run.path)
        else:
            logger.info("cleared away %s, which nobody held any more", run.path)

    def _end_lease(self, run: RunDirectory, row_id: str, fence: int) -> None:
        """While PostgreSQL is away, or not migrated yet, it is left to run out; the rest goes all the same."""
        if not self._tools.folders.sees_processes_of(run):
            return
        most, retry = self._tools.settings.max_attempts, self._tools.settings.retry_seconds
        try:
            with self._tools.database.transaction() as session:
                ended = leases.end_dead(session, row_id, fence, max_attempts=most, retry_seconds=retry)
                ended = ended or checks.end_dead(session, row_id, fence, max_attempts=most)
        except Exception as error:
            unexpected = not isinstance(error, (*DATABASE_AWAY, ProgrammingError))
            logger.warning(
                "%s: the lease of attempt %d is left to run out: %s", row_id, fence, error, exc_info=unexpected
            )
        else:
            if ended:
                logger.warning("%s: attempt %d ended with its worker, which died or gave it up", row_id, fence)


class _Remains:
    """What may run on of a directory that nobody holds."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.can_be_told = True
        self.empty_looks = 0
        """One behind the other."""
        self._sweep = Sweep(run)

    def look(self) -> None:
        """Kills what there is."""
        try:
            self.empty_looks = self.empty_looks + 1 if self._sweep.kill(None) else 0
        except Exception:  # whatever it is, the others are cleared away
            logger.exception("what runs of %s, which nobody holds, can't be told", self.run.path)
            self.can_be_told = False
