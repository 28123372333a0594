"""/v1/audit: who changed what in the key's project, and when."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter

from api.auth import Admin
from api.lists import After, Item, Limit, ListOf, list_of
from api.services import ServicesOf
from control_plane import audit
from control_plane.tables import AuditEntry

router = APIRouter(prefix="/v1/audit", tags=["operations"])


class AuditObject(Item):
    object: Literal["audit.entry"] = "audit.entry"
    created_at: int
    actor: str
    """A key's id, or `operator` for a command on the server."""

    action: str
    target: str
    """The id of what was changed."""

    request_id: str | None
    """The `x-request-id` of the answer."""


@router.get("", summary="Who changed what, newest first")
def list_entries(services: ServicesOf, caller: Admin, after: After = None, limit: Limit = 20) -> ListOf[AuditObject]:
    """Ids alone: no names, no content, no secrets. Entries outlive what they tell of."""
    with services.database.transaction() as session:
        page = audit.entries(session, caller.project_id, after=after, limit=limit)
        return list_of([_shape(entry) for entry in page.items], page.has_more)


def _shape(entry: AuditEntry) -> AuditObject:
    return AuditObject(
        id=entry.id,
        created_at=int(entry.created_at.timestamp()),
        actor=entry.actor,
        action=entry.action,
        target=entry.target,
        request_id=entry.request_id,
    )
