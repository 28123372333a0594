"""Bytes that nobody needs any more: noted in the transaction that makes them useless, removed after its commit.

Storage knows no transactions. Bytes removed before the commit would be missing after a rollback; bytes
removed after it would stay for ever after a crash in between. A note survives both: the API carries it
out after its own commit, and the workers carry out whatever is left.

The same at the other end: what is about to be stored is noted first (`expect`), for a day later, and the transaction
that makes it known takes the note back (`keep`). Of a process that dies in between nothing stays.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from control_plane.database import Database, dpo_now
from control_plane.errors import Conflict
from control_plane.storage import Storage, private_prefix, state_prefix
from control_plane.tables import Checkpoint, File, Job, Model, ReferenceShard, Removal, TokenTable

logger = logging.getLogger(__name__)


GRACE = timedelta(days=1)
"""More than anything takes from its first byte in storage to the commit that makes it known."""


def note(session: Session, prefix: str) -> None:
    """The object `prefix`, and all below it, may go once this transaction is committed."""
    _put(session, prefix, dpo_now(), expected=False)


def expect(session: Session, *prefixes: str) -> None:
    """Objects will be stored there once this transaction is committed; they go in a day, unless somebody keeps them."""
    for prefix in sorted(prefixes):
        _put(session, prefix, dpo_now() + GRACE, expected=True)


def keep(session: Session, *prefixes: str) -> None:
    """What was expected there stays, for this transaction makes it known. Conflict where it is gone already."""
    kept = session.scalars(delete(Removal).where(Removal.prefix.in_(prefixes)).returning(Removal.prefix)).all()
    if len(kept) < len(set(prefixes)):
        raise Conflict("This took longer than a day, and what had been stored of it was removed; begin anew.")


def _put(session: Session, prefix: str, moment: ColumnElement[datetime], *, expected: bool) -> None:
    statement = insert(Removal).values(prefix=prefix, not_before=moment, expected=expected)
    latest = {"not_before": statement.excluded.not_before, "expected": expected}
    session.execute(statement.on_conflict_do_update(index_elements=[Removal.prefix], set_=latest))


def note_private(session: Session, job: Job) -> None:
    """The finished job's states to resume from, and its logs; its models stay."""
    session.execute(update(Checkpoint).where(Checkpoint.job_id == job.id).values(state_kept=False))
    note(session, private_prefix(job.id))


def note_state(session: Session, checkpoint: Checkpoint) -> None:
    """Nobody resumes from this checkpoint any more; its model stays."""
    checkpoint.state_kept = False
    note(session, state_prefix(checkpoint.job_id, checkpoint.fence, checkpoint.step))


LONGEST_REMOVAL = "10min"
"""How long the transaction of a removal may stand still: it locks nothing that anybody waits for."""


def carry_out(database: Database, storage: Storage) -> None:
    """Removes what is noted. What storage refuses stays noted, for the next time; several callers share the work."""
    with database.transaction() as session:
        prefixes = session.scalars(select(Removal.prefix).where(_due())).all()
    for prefix in prefixes:
        with database.transaction() as session:
            mine = select(Removal).where(Removal.prefix == prefix, _due()).with_for_update(skip_locked=True)
            removal = session.scalars(mine).one_or_none()
            if removal is None:
                continue
            if removal.expected and is_known(session, prefix):
                session.delete(removal)
                continue
            session.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{LONGEST_REMOVAL}'"))
            try:
                storage.delete_prefix(prefix)
            except OSError as error:
                logger.warning("%s could not be removed from storage, trying again later: %s", prefix, error)
                continue
            session.delete(removal)


def undo(database: Database, storage: Storage, prefix: str, *more: str) -> None:
    """What was stored there for a commit that was refused goes, and `more` that belongs to it. Not where `prefix` is
    known: an earlier commit took place, though its answer was lost."""
    with database.transaction() as session:
        known = is_known(session, prefix)
    for stored in () if known else (prefix, *more):
        storage.delete_prefix(stored)


def is_known(session: Session, prefix: str) -> bool:
    """Whether a row stands for what is stored there: a commit that was not answered is tried, and expected, again."""
    state = func.concat("private/", Checkpoint.job_id, "/", Checkpoint.fence, "/step-", Checkpoint.step)
    rows: list[Select[str]] = [
        select(File.id).where(File.storage_key == prefix),
        select(Model.id).where(Model.storage_prefix == prefix, Model.deleted_at.is_(None)),
        select(Checkpoint.id).where(
            or_(Checkpoint.storage_prefix == prefix, Checkpoint.state_kept & (state == prefix))
        ),
        select(ReferenceShard.key).where(ReferenceShard.key == prefix),
        select(TokenTable.key).where(TokenTable.key == prefix),
    ]
    return any(session.scalars(query.limit(1)).first() is not None for query in rows)


def _due() -> ColumnElement[bool]:
    return Removal.not_before <= dpo_now()
