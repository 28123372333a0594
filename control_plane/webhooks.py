"""Webhook endpoints: where a project wants to be told how its jobs end, and the secret that signs what is sent."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field
from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from control_plane import audit
from control_plane.addresses import read_url
from control_plane.database import dpo_now
from control_plane.errors import Conflict, InvalidRequest, NotFound
from control_plane.ids import new_id
from control_plane.pages import Page, paginate
from control_plane.repetition import Repeatable, find_earlier, remember
from control_plane.settings import Settings
from control_plane.tables import Json, WebhookDelivery, WebhookEndpoint
from control_plane.validation import json_object, validated
from dpo_core.spec import StrictModel

EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
EVENT_TYPES: tuple[EventType, ...] = (
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
)

MAX_ENDPOINTS = 20
"""Of a project; each event is sent to all of them."""

SECRET_PREFIX = "whsec_"  # noqa: S105 - what every secret begins with
OLD_SECRET_LIVES = timedelta(hours=24)
MAX_OLD_SECRETS = 10
"""Each that still signs makes the signature's header longer."""

EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=len(EVENT_TYPES))]
Name = Annotated[str, Field(min_length=1, max_length=255)]


class EndpointRequest(StrictModel):
    """The body that registers an endpoint."""

    url: str
    name: Name | None = None
    """To recognise it by; without one, the URL's host."""
    event_types: EventTypes = Field(default_factory=lambda: list(EVENT_TYPES))


class EndpointChange(StrictModel):
    """The body that changes an endpoint; what is left out stays."""

    url: str | None = None
    name: Name | None = None
    event_types: EventTypes | None = None
    status: Literal["enabled", "disabled"] | None = None
    """Ours: the way back for one that was disabled after its failures."""


class RotationRequest(StrictModel):
    """The body that asks for another secret."""

    keep_old_secret_active_for_24_hours: bool = False
    """Deliveries are signed with both meanwhile."""


def create(
    session: Session, project_id: str, body: object, settings: Settings, *, repeatable: Repeatable | None = None
) -> WebhookEndpoint:
    """A new endpoint, with a secret that only this answer and a rotation show; or the one that this same request made
    before, with its present secret: the audit log says that it was shown."""
    repeatable = repeatable or Repeatable()
    request = validated(EndpointRequest, json_object(body))
    described: Json = {"webhook_endpoint": request.model_dump()}
    earlier = find_earlier(session, project_id, described, repeatable)
    if earlier is not None:
        audit.record(session, project_id, "webhook.secret_shown", earlier)
        return get(session, project_id, earlier)
    target = _target(request.url, settings)
    count = session.scalar(select(func.count()).where(WebhookEndpoint.project_id == project_id)) or 0
    if count >= MAX_ENDPOINTS:
        raise Conflict(
            f"The project has {count} webhook endpoints already; delete one first.", code="too_many_endpoints"
        )
    now = session.scalars(select(dpo_now())).one()
    endpoint = WebhookEndpoint(
        id=new_id("webhook"),
        project_id=project_id,
        created_at=now,
        updated_at=now,
        name=request.name or target,
        url=request.url,
        event_types=_once(request.event_types),
        secret=_new_secret(),
    )
    session.add(endpoint)
    audit.record(session, project_id, "webhook.created", endpoint.id)
    session.flush()
    remember(session, project_id, described, repeatable, endpoint)
    return endpoint


def get(session: Session, project_id: str, endpoint_id: str) -> WebhookEndpoint:
    """The project's endpoint. NotFound."""
    return _one(session, _owned(project_id, endpoint_id), endpoint_id)


def list_endpoints(
    session: Session, project_id: str, *, after: str | None = None, limit: int = 20
) -> Page[WebhookEndpoint]:
    """The project's endpoints, newest first."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    return paginate(session, query, item_id=WebhookEndpoint.id, order=(WebhookEndpoint.id,), after=after, limit=limit)


def change(session: Session, project_id: str, endpoint_id: str, body: object, settings: Settings) -> WebhookEndpoint:
    """The endpoint with the body's values. Whatever waits is sent to the new URL."""
    request = validated(EndpointChange, json_object(body))
    endpoint = _locked(session, project_id, endpoint_id)
    before = (endpoint.url, endpoint.name, endpoint.event_types, endpoint.disabled_at)
    if request.url is not None:
        _target(request.url, settings)
        endpoint.url = request.url
    if request.name is not None:
        endpoint.name = request.name
    if request.event_types is not None:
        endpoint.event_types = _once(request.event_types)
    if request.status == "enabled":
        endpoint.disabled_at = endpoint.disabled_reason = endpoint.failing_since = None
    elif request.status == "disabled" and endpoint.disabled_at is None:
        endpoint.disabled_at = session.scalars(select(dpo_now())).one()
        endpoint.disabled_reason = "by request"
    if before != (endpoint.url, endpoint.name, endpoint.event_types, endpoint.disabled_at):
        endpoint.updated_at = session.scalars(select(dpo_now())).one()
        audit.record(session, project_id, "webhook.changed", endpoint_id)
    session.flush()
    return endpoint


def rotate_secret(session: Session, project_id: str, endpoint_id: str, body: object) -> WebhookEndpoint:
    """Another secret. The one that it follows ends at once, or signs beside it for a day; those before that until their
    own day is over. Conflict where too many would sign."""
    request = validated(RotationRequest, json_object(body))
    endpoint = _locked(session, project_id, endpoint_id)
    now = session.scalars(select(dpo_now())).one()
    old = [kept for kept in endpoint.old_secrets if _signs(kept, now)]
    if request.keep_old_secret_active_for_24_hours:
        if len(old) == MAX_OLD_SECRETS:
            raise Conflict(
                f"{len(old)} old secrets of {endpoint_id!r} sign already. Wait until the oldest ends, at "
                f"{old[-1]['until']}, or rotate without `keep_old_secret_active_for_24_hours`.",
                code="too_many_secrets",
            )
        old.insert(0, {"secret": endpoint.secret, "until": (now + OLD_SECRET_LIVES).isoformat(timespec="seconds")})
    endpoint.old_secrets = old
    endpoint.secret, endpoint.updated_at = _new_secret(), now
    audit.record(session, project_id, "webhook.secret_rotated", endpoint_id)
    session.flush()
    return endpoint


def remove(session: Session, project_id: str, endpoint_id: str) -> None:
    """The endpoint goes with its log, and with what waits for it."""
    get(session, project_id, endpoint_id)
    log = delete(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
    session.execute(log)  # in the order of what a worker reports: a delivery, then its endpoint
    endpoint = _locked(session, project_id, endpoint_id)
    session.execute(log)  # what was made meanwhile; from here on nobody makes any
    session.delete(endpoint)
    audit.record(session, project_id, "webhook.deleted", endpoint_id)
    session.flush()


def signing_secrets(endpoint: WebhookEndpoint, now: datetime) -> tuple[str, ...]:
    """Those that sign what is sent now, the newest first."""
    return (endpoint.secret, *(str(old["secret"]) for old in endpoint.old_secrets if _signs(old, now)))


def hint(endpoint: WebhookEndpoint) -> str:
    """What a secret may be recognised by."""
    return f"{SECRET_PREFIX}…{endpoint.secret[-5:-1]}"


def signature(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """`v1,` and the HMAC of a delivery, as the openai client and Standard Webhooks have it."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.new(key, f"{message_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _signs(old_secret: Json, now: datetime) -> bool:
    return now < datetime.fromisoformat(old_secret["until"])


def _new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _target(url: str, settings: Settings) -> str:
    """The host of a URL that may be registered."""
    target = read_url(url, allow_http=settings.webhook_allow_http, allow_private=settings.webhook_allow_private)
    return target.host


def _once(types: list[EventType]) -> list[str]:
    if len(set(types)) < len(types):
        raise InvalidRequest("`event_types` names a type twice; name each once.", param="event_types")
    return [str(name) for name in types]


def _owned(project_id: str, endpoint_id: str) -> Select[WebhookEndpoint]:
    return select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id, WebhookEndpoint.id == endpoint_id)


def _locked(session: Session, project_id: str, endpoint_id: str) -> WebhookEndpoint:
    return _one(session, _owned(project_id, endpoint_id).with_for_update(), endpoint_id)


def _one(session: Session, query: Select[WebhookEndpoint], endpoint_id: str) -> WebhookEndpoint:
    endpoint = session.scalars(query).one_or_none()
    if endpoint is None:
        raise NotFound(f"There is no webhook endpoint {endpoint_id!r} in this project.", param="webhook_endpoint_id")
    return endpoint
