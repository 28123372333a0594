"""Deliveries of webhooks: made in the transaction that ends a job, so that none is lost; sent by the workers.

    waiting ──2xx──▶ delivered
       │  └─any other answer, or none─▶ waiting, for longer each time
       └───a day, or the endpoint is disabled─▶ failed ──redeliver──▶ waiting

A worker leases a delivery before it sends it. One that dies sends nothing more, and another sends it again: what an
endpoint gets, it gets at least once, each time with the same webhook-id.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from random import SystemRandom
from typing import Literal

from sqlalchemy import ColumnElement, Select, delete, exists, or_, select, update
from sqlalchemy.orm import Session, aliased

from control_plane import audit, events, fences, webhooks
from control_plane.database import ONE, dpo_now
from control_plane.errors import Conflict, NotFound
from control_plane.ids import new_id
from control_plane.pages import Page, paginate
from control_plane.tables import Job, WebhookDelivery, WebhookEndpoint
from control_plane.webhooks import EventType

FIRST_WAIT = timedelta(seconds=10)
LONGEST_WAIT = timedelta(hours=2)
PATIENCE = timedelta(days=1)
"""From an event, or the order to send it again, to the last try."""

LEASE_SECONDS = 60.0
"""Several times what a try may take (worker/posting.py)."""

LOG_KEPT = timedelta(days=30)

Ended = Literal["succeeded", "failed", "cancelled"]
TYPE_OF: dict[str, EventType] = {
    "succeeded": "fine_tuning.job.succeeded",
    "failed": "fine_tuning.job.failed",
    "cancelled": "fine_tuning.job.cancelled",
}


@dataclass(frozen=True)
class Claim:
    """A worker's right to send a delivery once, and all that it needs for it."""

    delivery_id: str
    fence: int
    message_id: str
    url: str
    secrets: tuple[str, ...]
    """The newest first."""
    body: str


@dataclass(frozen=True)
class Outcome:
    """What came of a try."""

    status_code: int | None
    """None where nothing answered."""
    error: str | None
    """Why it counts as failed; None for a 2xx."""


def announce(session: Session, job: Job) -> None:
    """The job has ended: one delivery for every endpoint that wants to know, in the caller's transaction."""
    kind = TYPE_OF[job.state]
    wanting = (
        select(WebhookEndpoint)
        .where(
            WebhookEndpoint.project_id == job.project_id,
            WebhookEndpoint.disabled_at.is_(None),
            WebhookEndpoint.event_types.contains([kind]),
        )
        .order_by(WebhookEndpoint.id)
        .with_for_update(read=True, key_share=True)  # one that is just being deleted must not fail the job's move
    )
    endpoints = session.scalars(wanting).all()
    if endpoints:
        now = session.scalars(select(dpo_now())).one()
        event_id = new_id("evt")
        for endpoint in endpoints:
            session.add(_row(endpoint, kind, job.id, event_id=event_id, now=now, job_id=job.id))
        session.flush()


def test(session: Session, project_id: str, endpoint_id: str, kind: EventType) -> WebhookDelivery:
    """A sample, for one try, to an endpoint that may be disabled; its data is the id of no job."""
    endpoint = webhooks.get(session, project_id, endpoint_id)
    now = session.scalars(select(dpo_now())).one()
    delivery = _row(endpoint, kind, "ftjob-test", event_id=new_id("evt"), now=now, job_id=None)
    session.add(delivery)
    audit.record(session, project_id, "webhook.tested", endpoint_id)
    session.flush()
    return delivery


def get(session: Session, project_id: str, endpoint_id: str, delivery_id: str) -> WebhookDelivery:
    """A delivery of the project's endpoint. NotFound."""
    return _one(session, project_id, endpoint_id, delivery_id, lock=False)


def list_deliveries(
    session: Session, project_id: str, endpoint_id: str, *, after: str | None = None, limit: int = 20
) -> Page[WebhookDelivery]:
    """The endpoint's deliveries of the last 30 days, newest first."""
    endpoint = webhooks.get(session, project_id, endpoint_id)
    query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint.id)
    return paginate(session, query, item_id=WebhookDelivery.id, order=(WebhookDelivery.id,), after=after, limit=limit)


def redeliver(session: Session, project_id: str, endpoint_id: str, delivery_id: str) -> WebhookDelivery:
    """Sends it again, now, and for another day where that fails. Conflict while its endpoint is disabled."""
    endpoint = webhooks.get(session, project_id, endpoint_id)
    if endpoint.disabled_at is not None:
        raise Conflict(
            f"The webhook endpoint {endpoint_id!r} is disabled ({endpoint.disabled_reason}); enable it first: "
            f'POST /v1/webhook_endpoints/{endpoint_id} with {{"status": "enabled"}}.',
            code="endpoint_disabled",
        )
    delivery = _one(session, project_id, endpoint_id, delivery_id, lock=True)
    now = session.scalars(select(dpo_now())).one()
    delivery.state, delivery.next_try_at, delivery.ended_at = "waiting", now, None
    delivery.retry_until = now + PATIENCE
    delivery.tries_now = 0
    audit.record(session, project_id, "webhook.redelivered", endpoint_id)
    session.flush()
    return delivery


def _held(delivery: type[WebhookDelivery]) -> ColumnElement[bool]:
    """SQL: a worker sends it. A lease that ends later than any may was written by a clock that was ahead."""
    return delivery.lease_until.between(dpo_now(), dpo_now() + timedelta(seconds=LEASE_SECONDS))


def claim(session: Session, worker_id: str) -> Claim | None:
    """Takes the next delivery that is due, or None. An endpoint gets one at a time: a slow one holds up no other."""
    delivery = session.scalars(_next_due()).one_or_none()
    if delivery is None:
        return None
    now = session.scalars(select(dpo_now())).one()
    if delivery.lease_until is not None and now > delivery.retry_until:
        # A delivery that kills its worker must come to an end, too.
        fences.release(delivery)
        delivery.error = "whoever sent it last was not heard of any more"
        _end(delivery, "failed", now)
        session.flush()
        return claim(session, worker_id)
    endpoint = session.get_one(WebhookEndpoint, delivery.endpoint_id)
    delivery.attempts += 1
    delivery.tries_now += 1
    delivery.tried_at = now
    fences.take(delivery, worker_id, LEASE_SECONDS)
    keys = webhooks.signing_secrets(endpoint, now)
    return Claim(delivery.id, delivery.fence, delivery.event_id, endpoint.url, keys, delivery.payload)


@cache
def _next_due() -> Select[WebhookDelivery]:
    """SQL, put together once: every worker asks at every look."""
    other = aliased(WebhookDelivery)
    being_sent = exists().where(other.endpoint_id == WebhookDelivery.endpoint_id, _held(other))
    free = or_(WebhookDelivery.lease_until.is_(None), ~_held(WebhookDelivery))
    return (
        select(WebhookDelivery)
        .where(WebhookDelivery.state == "waiting", WebhookDelivery.next_try_at <= dpo_now(), free, ~being_sent)
        .order_by(WebhookDelivery.next_try_at, WebhookDelivery.id)
        .limit(ONE)
        .with_for_update(skip_locked=True)
    )


def report(session: Session, claim: Claim, outcome: Outcome, *, disable_after: timedelta) -> None:
    """What came of it. StaleFence where the delivery is gone, or another worker's by now."""
    delivery = fences.held(session, WebhookDelivery, claim.delivery_id, claim.fence)
    fences.release(delivery)
    now = session.scalars(select(dpo_now())).one()
    delivery.status_code, delivery.error = outcome.status_code, outcome.error
    if outcome.error is None:
        _end(delivery, "delivered", now)
    else:
        next_try = now + wait_after(delivery.tries_now)
        if next_try > delivery.retry_until:
            _end(delivery, "failed", now)
        else:
            delivery.next_try_at = next_try
    if delivery.job_id is not None:
        _note(session, delivery, outcome, now, disable_after)
    session.flush()


def wait_after(tries: int) -> timedelta:
    """Doubles with each try, and is a random part longer than its half: endpoints that failed together are not all
    tried again together."""
    longest: timedelta = min(FIRST_WAIT * 2 ** min(tries - 1, 20), LONGEST_WAIT)
    return longest * SystemRandom().uniform(0.5, 1.0)


def forget_old(session: Session) -> None:
    """Deliveries that ended long ago leave the log."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.ended_at < dpo_now() - LOG_KEPT))


def _row(
    endpoint: WebhookEndpoint, kind: EventType, subject: str, *, event_id: str, now: datetime, job_id: str | None
) -> WebhookDelivery:
    payload = {
        "id": event_id,
        "object": "event",
        "created_at": int(now.timestamp()),
        "type": kind,
        "data": {"id": subject},
    }
    return WebhookDelivery(
        id=new_id("delivery"),
        project_id=endpoint.project_id,
        endpoint_id=endpoint.id,
        job_id=job_id,
        event_id=event_id,
        event_type=kind,
        payload=json.dumps(payload),
        state="waiting",
        next_try_at=now,
        retry_until=now + PATIENCE if job_id is not None else now,
    )


def _end(delivery: WebhookDelivery, state: Literal["delivered", "failed"], now: datetime) -> None:
    delivery.state, delivery.next_try_at, delivery.ended_at = state, None, now


def _note(
    session: Session, delivery: WebhookDelivery, outcome: Outcome, now: datetime, disable_after: timedelta
) -> None:
    """Remembers since when the endpoint fails, and disables it where that is too long."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == delivery.endpoint_id)
    endpoint = session.scalars(query.with_for_update(key_share=True).execution_options(populate_existing=True)).one()
    if outcome.error is None:
        endpoint.failing_since = None
        return
    endpoint.failing_since = endpoint.failing_since or now
    if endpoint.disabled_at is None and now - endpoint.failing_since >= disable_after:
        _disable(session, endpoint, delivery, now)


def _disable(session: Session, endpoint: WebhookEndpoint, delivery: WebhookDelivery, now: datetime) -> None:
    since = f"{endpoint.failing_since:%Y-%m-%d %H:%M} UTC"
    endpoint.disabled_at = now
    endpoint.disabled_reason = f"nothing was delivered since {since}; the last try: {delivery.error}"
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint.id, WebhookDelivery.state == "waiting")
        .values(state="failed", next_try_at=None, ended_at=now)
    )
    session.refresh(delivery)
    job = session.get_one(Job, delivery.job_id, with_for_update=True)
    message = (
        f"The webhook endpoint {endpoint.id} ({endpoint.name}) was disabled: {endpoint.disabled_reason}. Repair it, "
        f'then POST /v1/webhook_endpoints/{endpoint.id} with {{"status": "enabled"}}.'
    )
    data = {"webhook_endpoint": endpoint.id}
    events.add(session, job, code="webhook_disabled", message=message, level="warn", data=data)


def _one(session: Session, project_id: str, endpoint_id: str, delivery_id: str, *, lock: bool) -> WebhookDelivery:
    query = select(WebhookDelivery).where(
        WebhookDelivery.project_id == project_id,
        WebhookDelivery.endpoint_id == endpoint_id,
        WebhookDelivery.id == delivery_id,
    )
    delivery = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if delivery is None:
        raise NotFound(f"The webhook endpoint {endpoint_id!r} has no delivery {delivery_id!r}.", param="delivery_id")
    return delivery
