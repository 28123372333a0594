"""A create request that comes twice makes one thing: one job, sweep, file, upload or webhook endpoint.

Two cases. A client sends an `Idempotency-Key`: the same key with the same body is the same thing, for
good. Or OpenAI's client repeats a POST by itself after a lost answer, with no key; such a request
differs only in its retry count, so the same API key and body within RETRY_WINDOW is the same thing. It hangs
up before it asks again; a request whose turn comes only then makes nothing, as its repetition may have come first.

A sweep is known by its first job. No body of one kind can be that of another: a sweep's holds lists where a job's
can't, and a file's, an upload's and an endpoint's are described under a name of their own. A deleted file or endpoint
is known no more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import cast

from sqlalchemy import Table, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from control_plane.database import dpo_now
from control_plane.errors import GaveUp, InvalidRequest
from control_plane.tables import File, IdempotencyKey, Job, Json, Upload, WebhookEndpoint

RETRY_WINDOW = timedelta(minutes=35)
"""OpenAI's client asks three times, and waits ten minutes for each answer."""
Made = Job | File | Upload | WebhookEndpoint
COLUMNS: dict[type[Made], str] = {
    Job: "job_id",
    File: "file_id",
    Upload: "upload_id",
    WebhookEndpoint: "webhook_endpoint_id",
}


@dataclass(frozen=True)
class Repeatable:
    """How a create request would be known again."""

    idempotency_key: str | None = None
    api_key_id: str | None = None
    is_retry: bool = False
    """Whether the client says that it sent this before (`x-stainless-retry-count` above 0)."""
    hung_up: Callable[[], bool] = lambda: False
    """Whether the client waits for no answer any more."""


def find_earlier(session: Session, project_id: str, body: Json, repeatable: Repeatable) -> str | None:
    """The id of what a request with this body made before, if it did.

    Until the transaction ends, the same request waits here, so that two at once make one job.

    Raises:
        InvalidRequest: the Idempotency-Key was used with another body.
        GaveUp: the client has hung up, and there is no key to know its next try by.
    """
    key = _key(body, repeatable)
    if key is None:
        return None
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{project_id} {key}", 0))))
    query = select(IdempotencyKey).where(IdempotencyKey.project_id == project_id, IdempotencyKey.key == key)
    if repeatable.idempotency_key is None:
        if repeatable.hung_up():
            raise GaveUp("The client hung up before its request was dealt with. Nothing was made.")
        if not repeatable.is_retry:
            return None
        query = query.where(IdempotencyKey.created_at > dpo_now() - RETRY_WINDOW)
    known = session.scalars(query).one_or_none()
    if known is None:
        return None
    if known.request_hash != _body_hash(body):
        raise InvalidRequest(
            f"The Idempotency-Key {repeatable.idempotency_key!r} was used with another body; use a new key.",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
    return known.job_id or known.file_id or known.upload_id or known.webhook_endpoint_id


def remember(session: Session, project_id: str, body: Json, repeatable: Repeatable, made: Made) -> None:
    """Lets `find_earlier` find this when the request comes again."""
    key = _key(body, repeatable)
    if key is None:
        return
    ids = {COLUMNS[kind]: made.id if isinstance(made, kind) else None for kind in COLUMNS}
    row = {"project_id": project_id, "key": key, "request_hash": _body_hash(body), **ids}
    table = cast(Table, IdempotencyKey.__table__)  # past the ORM, which takes four times as long over it
    latest = {**ids, "created_at": dpo_now()}
    statement = insert(table).values(row)
    session.execute(statement.on_conflict_do_update(index_elements=[table.c.project_id, table.c.key], set_=latest))


def _key(body: Json, repeatable: Repeatable) -> str | None:
    if repeatable.idempotency_key is not None:
        return f"key:{sha256(repeatable.idempotency_key.encode()).hexdigest()}"
    if repeatable.api_key_id is not None:
        return f"retry:{sha256(f'{repeatable.api_key_id} {_body_hash(body)}'.encode()).hexdigest()}"
    return None


def _body_hash(body: Json) -> str:
    """Equal for requests that say the same, whatever the order of their fields."""
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
