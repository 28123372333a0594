"""Objects of a project's caches between storage and a run directory: token tables, reference log-probabilities.

They only save time, and are never trusted: what is fetched must have the bytes that were stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sqlalchemy.orm import Session

from control_plane import removals
from control_plane.database import Database
from control_plane.errors import Conflict, StaleFence
from control_plane.storage import Storage
from dpo_core.run_directory import sha256_of

logger = logging.getLogger(__name__)

Found = Literal["here", "damaged", "not now"]


def fetch(storage: Storage, key: str, sha256: str, path: Path) -> Found:
    """Puts the object at `path`, if it has the bytes that were stored.

    `damaged` where it is gone or has others: nobody will ever have it. `not now` where this disk is full, or storage
    doesn't answer: the object may be as good as ever.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.fetch(key, path)
        if sha256_of(path) == sha256:
            return "here"
    except FileNotFoundError:
        return "damaged"
    except OSError as error:
        logger.warning("%s could not be fetched, and is made again: %s", key, error)
        path.unlink(missing_ok=True)
        return "not now"
    path.unlink()
    return "damaged"


def keep(database: Database, storage: Storage, key: str, path: Path, make_known: Callable[[Session], None]) -> None:
    """Puts the file at `path` into storage, then has `make_known` say so. One that storage refuses is not kept.

    Raises:
        StaleFence: from `make_known`; nothing is kept, unless it is known: an earlier commit was not answered.
        Conflict: it took a day; the same.
        OperationalError: PostgreSQL doesn't answer; the caller tries again.
    """
    with database.transaction() as session:
        removals.expect(session, key)
    try:
        storage.put_file(key, path)
    except OSError as error:
        logger.warning("%s could not be kept: %s", key, error)
        return
    try:
        with database.transaction() as session:
            removals.keep(session, key)
            make_known(session)
    except (StaleFence, Conflict):
        removals.undo(database, storage, key)
        raise
    removals.carry_out(database, storage)
