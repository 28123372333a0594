"""What a project's jobs share to save time: files in storage, of which those go first that were used least recently."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from control_plane import removals
from control_plane.tables import Project, ReferenceShard, TokenTable

Cached = type[ReferenceShard] | type[TokenTable]
"""A table with a row for each file: `key` in storage, `project_id`, `bytes`, `last_used_at`."""


def lock(session: Session, project_id: str) -> None:
    """One at a time per project: two that lock the same rows in other orders would wait for each other."""
    session.get_one(Project, project_id, with_for_update={"key_share": True})


def evict(session: Session, table: Cached, project_id: str, limit: int) -> None:
    """The newest in use stay, as many as fit into `limit` bytes."""
    newest_first = (table.last_used_at.desc(), table.key.desc())
    with_newer = select(table.key, func.sum(table.bytes).over(order_by=newest_first).label("bytes"))
    ranked = with_newer.where(table.project_id == project_id).subquery()
    forget(session, table, session.scalars(select(ranked.c.key).where(ranked.c.bytes > limit)))


def forget(session: Session, table: Cached, keys: Iterable[str]) -> None:
    """Drops rows, and notes the removal of their bytes."""
    for key in list(keys):
        session.execute(delete(table).where(table.key == key))
        removals.note(session, key)
