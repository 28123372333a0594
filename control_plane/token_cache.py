"""Token tables that a project's jobs share: data that was rendered and tokenized once for the same files and model.

A table lies at `private/tokens/{project}/{content}/{job}-{fence}-{part}.safetensors`. The content is a digest of all
that it depends on (dpo_core/data/table_key.py). It goes with any file that it was made of. Projects share nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import cached, events, leases
from control_plane.database import dpo_now
from control_plane.leases import Claim
from control_plane.storage import tokens_prefix
from control_plane.tables import File, TokenTable


def table_key(claim: Claim, content: str, name: str) -> str:
    """Where this attempt's table `name` lies: never where another one was, which may be about to go."""
    return f"{tokens_prefix(claim.project_id, content)}/{claim.job_id}-{claim.fence}-{name}"


def take(session: Session, claim: Claim, content: str) -> TokenTable | None:
    """The project's newest table with this content; counts as used now."""
    cached.lock(session, claim.project_id)
    mine = select(TokenTable).where(TokenTable.project_id == claim.project_id, TokenTable.content == content)
    found = session.scalars(mine.order_by(TokenTable.created_at.desc(), TokenTable.key).limit(1)).one_or_none()
    if found is not None:
        found.last_used_at = session.scalars(select(dpo_now())).one()
    return found


def store(session: Session, claim: Claim, table: TokenTable, *, limit: int) -> None:
    """Makes a table in storage known. What its project has used least recently goes, down to `limit` bytes in all.

    One whose files were deleted meanwhile goes at once.

    Raises:
        StaleFence: the job is no longer this claim's; nothing is stored.
    """
    leases.held(session, claim)
    cached.lock(session, claim.project_id)
    session.merge(table)
    session.flush()
    there = session.scalars(select(File.id).where(File.id.in_(table.file_ids))).all()
    if len(there) < len(table.file_ids):
        cached.forget(session, TokenTable, [table.key])
    cached.evict(session, TokenTable, claim.project_id, limit)


def drop(session: Session, claim: Claim, table: TokenTable) -> None:
    """Forgets a table that can't be read. The job makes it again, and an event says so.

    Raises:
        StaleFence: the job is no longer this claim's; nothing changes.
    """
    job = leases.held(session, claim)
    cached.lock(session, claim.project_id)
    cached.forget(session, TokenTable, [table.key])
    message = "Cached tokens could not be read (damaged or missing in storage); the rows are rendered again."
    events.add(session, job, code="token_cache_damaged", message=message, level="warn")


def forget_file(session: Session, project_id: str, file_id: str) -> None:
    """No table that holds tokens of the file outlives it."""
    cached.lock(session, project_id)
    made_of = TokenTable.file_ids.contains([file_id])
    keys: Sequence[str] = session.scalars(
        select(TokenTable.key).where(TokenTable.project_id == project_id, made_of)
    ).all()
    cached.forget(session, TokenTable, keys)
