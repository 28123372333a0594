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

    Returns earlier, too, once `until` is true: the next worker goes on. To that one a run directory stays as well of
    which a process can't be killed, for its GPU or file system hangs, or which can't be removed.
    """
    for run in _swept(list(folders.leftovers()), until):
        if until():
            return
        try:
            _keep_log(database, storage, run)
            folders.remove(run)
        except Exception:  # whatever it is, this worker must start
            logger.exception("%s, left by a worker that died, can't be cleared away", run.path)
        else:
            logger.info("cleared away %s, left by a worker that died", run.path)


def _swept(runs: list[RunDirectory], until: Callable[[], bool]) -> list[RunDirectory]:
    """Those of which no process is left, after some patience with all of them."""
    left = [(run, Sweep(run)) for run in runs]
    swept: list[RunDirectory] = []
    patience = time.monotonic() + UNKILLABLE_SECONDS
    while left and not until():
        looked = [(run, sweep, sweep.kill(None)) for run, sweep in left]
        swept += [run for run, _, gone in looked if gone]
        left = [(run, sweep) for run, sweep, gone in looked if not gone]
        if left and time.monotonic() > patience:
            for run, _ in left:
                logger.error("%s, left by a worker that died: a process of it can't be killed", run.path)
            break
        time.sleep(LOOK_SECONDS if left else 0)
    return swept


def _keep_log(database: Database, storage: Storage, run: RunDirectory) -> None:
    """What the last words were of an attempt whose worker died is most worth knowing."""
    RunLog(storage, run.path.parent.name, int(run.path.name), run).keep_last(database)
