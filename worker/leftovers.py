"""What a worker that died left on this host: nothing of it may run on, and only its log is needed."""

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
    """Returns when no process of it is left, and no run directory. The logs are in storage then.

    Returns earlier, too, once `until` is true: the next worker goes on.

    Where a process can't be killed, for its GPU or file system hangs, its run directory stays, for the next worker.
    """
    swept = [run for run in folders.leftovers() if _swept(run, until)]
    for run in swept:
        if until():
            return
        _keep_log(database, storage, run)
        folders.remove(run)
        logger.info("cleared away %s, left by a worker that died", run.path)


def _swept(run: RunDirectory, until: Callable[[], bool]) -> bool:
    """Whether no process of it is left, after some patience."""
    sweep, patience = Sweep(run), time.monotonic() + UNKILLABLE_SECONDS
    while not sweep.kill(None):
        if until():
            return False
        if time.monotonic() > patience:
            logger.error("%s, left by a worker that died: a process of it can't be killed", run.path)
            return False
        time.sleep(LOOK_SECONDS)
    return True


def _keep_log(database: Database, storage: Storage, run: RunDirectory) -> None:
    """What the last words were of an attempt whose worker died is most worth knowing."""
    RunLog(storage, run.path.parent.name, int(run.path.name), run).keep_last(database)
