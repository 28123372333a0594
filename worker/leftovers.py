"""Run directories that nobody holds: a worker that died left them, or one could not remove them.

Nothing of them may run on, and only their logs are needed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from control_plane.database import Database
from control_plane.storage import Storage
from dpo_core.run_directory import RunDirectory
from worker.folders import RunFolders
from worker.run_log import RunLog
from worker.sweep import UNKILLABLE_SECONDS, Sweep

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1


def clear_away(database: Database, folders: RunFolders, storage: Storage, *, until: Callable[[], bool]) -> None:
    """Returns when no process of them is left, and no run directory. The logs are in storage then.

    Returns earlier, too, once `until` is true. What can't be cleared away is left to the next look: one of which a
    process can't be killed, for its GPU or file system hangs, or which can't be removed, as while no writes are taken.
    """
    found = list(folders.leftovers())
    try:
        for run in _swept(found, until):
            if until():
                return
            _clear(database, folders, storage, run)
    finally:
        for run in found:
            folders.leave(run)


def _swept(runs: list[RunDirectory], until: Callable[[], bool]) -> list[RunDirectory]:
    """Those of which no process is left, after some patience with all of them."""
    left = [(run, Sweep(run)) for run in runs]
    swept: list[RunDirectory] = []
    patience = time.monotonic() + UNKILLABLE_SECONDS
    while left and not until():
        looked = [(run, sweep, _gone(run, sweep)) for run, sweep in left]
        swept += [run for run, _, gone in looked if gone]
        left = [(run, sweep) for run, sweep, gone in looked if gone is False]
        if left and time.monotonic() > patience:
            for run, _ in left:
                logger.error("a process of %s, which nobody holds, can't be killed", run.path)
            break
        if left:
            time.sleep(LOOK_SECONDS)
    return swept


def _gone(run: RunDirectory, sweep: Sweep) -> bool | None:
    """Whether every process of it is; None where that can't be told."""
    try:
        return sweep.kill(None)
    except Exception:  # whatever it is, the others are cleared away
        logger.exception("what runs of %s, which nobody holds, can't be told", run.path)
        return None


def _clear(database: Database, folders: RunFolders, storage: Storage, run: RunDirectory) -> None:
    try:
        # What the last words were of an attempt whose worker died is most worth knowing.
        RunLog(storage, run.path.parent.name, int(run.path.name), run).keep_last(database)
        folders.remove(run)
    except Exception:  # as above
        logger.exception("%s, which nobody holds, can't be cleared away", run.path)
    else:
        logger.info("cleared away %s, which nobody held any more", run.path)
