"""The audit log: who changed what, and when. Written in the transaction that makes the change.

It names ids alone, never a name, a content or a secret, so that it may outlive what it tells of: a deleted project's
entries stay.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane.ids import new_id
from control_plane.pages import Page, paginate
from control_plane.tables import AuditEntry

OPERATOR = "operator"
"""Whoever runs a command on the server, where it needs no key; or the service itself, as for `file.expired`."""


@dataclass(frozen=True)
class Actor:
    """Who makes the changes of a transaction: `database.transaction(actor=…)`."""

    key_id: str
    request_id: str


def record(session: Session, project_id: str | None, action: str, target: str) -> None:
    """`action` is what happened to what, as `file.deleted`; `target` its id."""
    actor = session.info.get("actor")
    key = actor if isinstance(actor, Actor) else None
    entry = AuditEntry(
        id=new_id("audit"),
        project_id=project_id,
        actor=key.key_id if key else OPERATOR,
        request_id=key.request_id if key else None,
        action=action,
        target=target,
    )
    session.add(entry)


def entries(session: Session, project_id: str | None, *, after: str | None = None, limit: int = 20) -> Page[AuditEntry]:
    """A project's entries, newest first; without a project all of them."""
    query = select(AuditEntry)
    if project_id is not None:
        query = query.where(AuditEntry.project_id == project_id)
    return paginate(session, query, item_id=AuditEntry.id, order=(AuditEntry.id,), after=after, limit=limit)
