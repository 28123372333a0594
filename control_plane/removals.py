"""Bytes that nobody needs any more: noted in the transaction that makes them useless, removed after its commit.

Storage knows no transactions. Bytes removed before the commit would be missing after a rollback; bytes
removed after it would stay for ever after a crash in between. A note survives both: the API carries it
out after its own commit, and the workers carry out whatever is left.
"""

from __future__ import annotations

import logging

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from control_plane.database import Database
from control_plane.storage import Storage, private_prefix, state_prefix
from control_plane.tables import Checkpoint, Job, Removal

logger = logging.getLogger(__name__)


def note(session: Session, prefix: str) -> None:
    """The object `prefix`, and all below it, may go once this transaction is committed."""
    session.execute(insert(Removal).values(prefix=prefix).on_conflict_do_nothing())


def note_private(session: Session, job: Job) -> None:
    """The finished job's states to resume from, and its logs; its models stay."""
    session.execute(update(Checkpoint).where(Checkpoint.job_id == job.id).values(state_kept=False))
    note(session, private_prefix(job.id))


def note_state(session: Session, checkpoint: Checkpoint) -> None:
    """Nobody resumes from this checkpoint any more; its model stays."""
    checkpoint.state_kept = False
    note(session, state_prefix(checkpoint.job_id, checkpoint.fence, checkpoint.step))


def carry_out(database: Database, storage: Storage) -> None:
    """Removes what is noted. What storage refuses stays noted, for the next time; several callers share the work."""
    with database.transaction() as session:
        prefixes = session.scalars(select(Removal.prefix)).all()
    for prefix in prefixes:
        with database.transaction() as session:
            mine = select(Removal).where(Removal.prefix == prefix).with_for_update(skip_locked=True)
            removal = session.scalars(mine).one_or_none()
            if removal is None:
                continue
            try:
                storage.delete_prefix(prefix)
            except OSError as error:
                logger.warning("%s could not be removed from storage, trying again later: %s", prefix, error)
                continue
            session.delete(removal)
