"""Run directories that nobody holds: a worker that died left them, or one could not remove them.

Nothing of them may run on, and only their logs are needed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from control_plane.database import Database
from control_plane.storage import Storage
from dpo_core.run_directory import RunDirectory
from worker.folders import RunFolders
from worker.run_log import RunLog
from worker.sweep import UNKILLABLE_SECONDS, Sweep

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
PATIENCE_AT_START = UNKILLABLE_SECONDS
"""For processes to die, before this worker takes work: they may hold its GPUs."""
PATIENCE_LATER = 5.0


class Leftovers:
    def __init__(self, database: Database, folders: RunFolders, storage: Storage, *, until: Callable[[], bool]) -> None:
        """`until`: whether to look no longer."""
        self._database, self._folders, self._storage, self._until = database, folders, storage, until
        self._logs_kept: set[Path] = set()
        """Run directories whose logs are in storage, and that could not be removed."""

    def clear_away(self, patience: float) -> None:
        """Returns when no process of them is left, and no run directory. The logs are in storage then.

        Returns earlier, too, once `until` is true. What can't be cleared away is left to the next look: one of which
        a process lives on for `patience` seconds, as its GPU or file system hangs, or which can't be removed, as while
        its file system takes no writes.
        """
        found = list(self._folders.leftovers())
        try:
            for run in self._swept(found, patience):
                if self._until():
                    return
                self._clear(run)
        finally:
            for run in found:
                self._folders.leave(run)

    def _swept(self, runs: list[RunDirectory], patience: float) -> list[RunDirectory]:
        """Those of which no process is left, after some patience with all of them."""
        left = [(run, Sweep(run)) for run in runs]
        swept: list[RunDirectory] = []
        end = time.monotonic() + patience
        while left and not self._until():
            looked = [(run, sweep, _gone(run, sweep)) for run, sweep in left if not self._until()]
            swept += [run for run, _, gone in looked if gone]
            left = [(run, sweep) for run, sweep, gone in looked if gone is False]
            if left and time.monotonic() > end:
                for run, _ in left:
                    logger.error("%s, which nobody holds: a process of it lives on after kill -9", run.path)
                break
            if left:
                time.sleep(LOOK_SECONDS)
        return swept

    def _clear(self, run: RunDirectory) -> None:
        try:
            if run.path not in self._logs_kept:
                # What the last words were of an attempt whose worker died is most worth knowing.
                RunLog(self._storage, run.path.parent.name, int(run.path.name), run).keep_last(self._database)
            self._logs_kept.add(run.path)
            self._folders.remove(run)
            self._logs_kept.discard(run.path)
        except Exception:  # whatever it is, the others are cleared away
            logger.exception("%s, which nobody holds, can't be cleared away", run.path)
        else:
            logger.info("cleared away %s, which nobody held any more", run.path)


def _gone(run: RunDirectory, sweep: Sweep) -> bool | None:
    """Whether every process of it is; None where that can't be told."""
    try:
        return sweep.kill(None)
    except Exception:  # as above
        logger.exception("what runs of %s, which nobody holds, can't be told", run.path)
        return None
