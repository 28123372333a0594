"""/v1/webhook_endpoints: where a project is told how its jobs end, and the log of what was sent.

The routes are those of the openai client's `webhooks`; the deliveries are ours.
"""

from __future__ import annotations

from typing import Any, Literal

import anyio
from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from api.auth import Caller, CallerOf, JobsWriter
from api.json_body import JsonBody, OptionalJsonBody
from api.lists import After, Item, Limit, ListOf, list_of
from api.repeats import RepeatsOf
from api.services import Services, ServicesOf
from control_plane import deliveries, webhooks
from control_plane.errors import Conflict
from control_plane.tables import WebhookDelivery, WebhookEndpoint
from control_plane.validation import json_object, validated
from control_plane.webhooks import EndpointChange, EndpointRequest, EventType, RotationRequest
from dpo_core.spec import StrictModel

POLL_SECONDS = 0.2
LONGEST_TEST = 30.0

REF = "#/components/schemas/{model}"

router = APIRouter(tags=["webhooks"])


class TestRequest(StrictModel):
    """The body that asks for a sample."""

    __test__ = False  # pytest takes the name for a test's

    event_type: EventType


class WebhookEndpointObject(Item):
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    status: Literal["enabled", "disabled"]
    """Ours, and so the rest."""
    disabled_reason: str | None
    failing_since: int | None


class WebhookEndpointWithSecret(WebhookEndpointObject):
    signing_secret: str


class WebhookEndpointDeleted(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: bool = True


class WebhookTested(BaseModel):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    event_type: str
    status_code: int
    success: Literal[True] = True
    """There was an answer; `status_code` says which."""
    webhook_endpoint_id: str


class WebhookEventTypes(BaseModel):
    object: Literal["list"] = "list"
    data: list[str]


class WebhookDeliveryObject(Item):
    """Ours."""

    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    created_at: int
    webhook_endpoint_id: str
    event_id: str
    event_type: str
    fine_tuning_job_id: str | None
    """None for a test."""
    status: Literal["waiting", "delivered", "failed"]
    attempts: int
    last_attempt_at: int | None
    last_status_code: int | None
    last_error: str | None
    next_attempt_at: int | None


def _body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    schema = {"$ref": REF.format(model=model.__name__)}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


@router.get("/v1/webhook_event_types", summary="What endpoints can be told")
def event_types(_: CallerOf) -> WebhookEventTypes:
    return WebhookEventTypes(data=list(webhooks.EVENT_TYPES))


@router.post("/v1/webhook_endpoints", summary="Register an endpoint", openapi_extra=_body(EndpointRequest))
def create_endpoint(
    caller: JobsWriter, body: JsonBody, services: ServicesOf, repeats: RepeatsOf
) -> WebhookEndpointWithSecret:
    """The answer shows the secret that deliveries are signed with; only a rotation shows another one.

    A request that is sent again (same Idempotency-Key, or the openai client's own retry) makes no second endpoint.
    """
    with services.database.transaction(actor=caller.actor) as session:
        repeatable = repeats.by(caller)
        return _with_secret(webhooks.create(session, caller.project_id, body, services.settings, repeatable=repeatable))


@router.get("/v1/webhook_endpoints", summary="List endpoints, newest first")
def list_endpoints(
    services: ServicesOf, caller: CallerOf, after: After = None, limit: Limit = 20
) -> ListOf[WebhookEndpointObject]:
    with services.database.transaction() as session:
        page = webhooks.list_endpoints(session, caller.project_id, after=after, limit=limit)
        return list_of([WebhookEndpointObject(**_facts(endpoint)) for endpoint in page.items], page.has_more)


@router.get("/v1/webhook_endpoints/{endpoint_id}", summary="Read an endpoint")
def retrieve_endpoint(endpoint_id: str, services: ServicesOf, caller: CallerOf) -> WebhookEndpointObject:
    with services.database.transaction() as session:
        return WebhookEndpointObject(**_facts(webhooks.get(session, caller.project_id, endpoint_id)))


@router.post("/v1/webhook_endpoints/{endpoint_id}", summary="Change an endpoint", openapi_extra=_body(EndpointChange))
def change_endpoint(
    endpoint_id: str, caller: JobsWriter, body: JsonBody, services: ServicesOf
) -> WebhookEndpointObject:
    """`status` is ours: `enabled` brings back an endpoint that was disabled after its failures."""
    with services.database.transaction(actor=caller.actor) as session:
        endpoint = webhooks.change(session, caller.project_id, endpoint_id, body, services.settings)
        return WebhookEndpointObject(**_facts(endpoint))


@router.delete("/v1/webhook_endpoints/{endpoint_id}", summary="Delete an endpoint with its log")
def delete_endpoint(endpoint_id: str, services: ServicesOf, caller: JobsWriter) -> WebhookEndpointDeleted:
    with services.database.transaction(actor=caller.actor) as session:
        webhooks.remove(session, caller.project_id, endpoint_id)
    return WebhookEndpointDeleted(id=endpoint_id)


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/rotate_secret",
    summary="Sign with another secret",
    openapi_extra=_body(RotationRequest, required=False),
)
def rotate_secret(
    endpoint_id: str, caller: JobsWriter, body: OptionalJsonBody, services: ServicesOf
) -> WebhookEndpointWithSecret:
    with services.database.transaction(actor=caller.actor) as session:
        return _with_secret(webhooks.rotate_secret(session, caller.project_id, endpoint_id, body))


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/test",
    summary="Send a sample and wait for the answer",
    openapi_extra=_body(TestRequest),
)
async def test_endpoint(endpoint_id: str, caller: JobsWriter, body: JsonBody, services: ServicesOf) -> WebhookTested:
    """A worker sends it, once; its `data.id` is `ftjob-test`. 400 where nothing answers, with the reason."""
    asked = validated(TestRequest, json_object(body))
    sent = await _tested(services, caller, endpoint_id, asked.event_type)
    if sent.state == "waiting":
        raise Conflict(
            f"No worker sent the sample within {LONGEST_TEST:g} s; is one running? "
            f"GET /v1/webhook_endpoints/{endpoint_id}/deliveries shows when it was.",
            code="not_sent_yet",
        )
    if sent.status_code is None:
        raise Conflict(f"The endpoint gave no answer: {sent.error}.", code="webhook_unreachable")
    return WebhookTested(event_type=sent.event_type, status_code=sent.status_code, webhook_endpoint_id=endpoint_id)


@router.get("/v1/webhook_endpoints/{endpoint_id}/deliveries", summary="What was sent, newest first")
def list_deliveries(
    endpoint_id: str, services: ServicesOf, caller: CallerOf, after: After = None, limit: Limit = 20
) -> ListOf[WebhookDeliveryObject]:
    """The last 30 days, and what waits."""
    with services.database.transaction() as session:
        page = deliveries.list_deliveries(session, caller.project_id, endpoint_id, after=after, limit=limit)
        return list_of([_delivery(delivery) for delivery in page.items], page.has_more)


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/redeliver", summary="Send a delivery again, now"
)
def redeliver(endpoint_id: str, delivery_id: str, services: ServicesOf, caller: JobsWriter) -> WebhookDeliveryObject:
    """With the same `webhook-id`; whoever got it before can tell."""
    with services.database.transaction(actor=caller.actor) as session:
        return _delivery(deliveries.redeliver(session, caller.project_id, endpoint_id, delivery_id))


async def _tested(services: Services, caller: Caller, endpoint_id: str, kind: EventType) -> WebhookDelivery:
    """A sample, once it was tried, or as it is after LONGEST_TEST."""

    def order() -> WebhookDelivery:
        with services.database.transaction(actor=caller.actor) as session:
            return deliveries.test(session, caller.project_id, endpoint_id, kind)

    def look(delivery_id: str) -> WebhookDelivery:
        with services.database.transaction() as session:
            return deliveries.get(session, caller.project_id, endpoint_id, delivery_id)

    sent = await run_in_threadpool(order)
    until = anyio.current_time() + LONGEST_TEST
    while sent.state == "waiting" and anyio.current_time() < until:
        await anyio.sleep(POLL_SECONDS)
        sent = await run_in_threadpool(look, sent.id)
    return sent


def _with_secret(endpoint: WebhookEndpoint) -> WebhookEndpointWithSecret:
    return WebhookEndpointWithSecret(**_facts(endpoint), signing_secret=endpoint.secret)


def _facts(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "created_at": int(endpoint.created_at.timestamp()),
        "updated_at": int(endpoint.updated_at.timestamp()),
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "signing_secret_hint": webhooks.hint(endpoint),
        "status": "enabled" if endpoint.disabled_at is None else "disabled",
        "disabled_reason": endpoint.disabled_reason,
        "failing_since": int(endpoint.failing_since.timestamp()) if endpoint.failing_since else None,
    }


def _delivery(delivery: WebhookDelivery) -> WebhookDeliveryObject:
    return WebhookDeliveryObject(
        id=delivery.id,
        created_at=int(delivery.created_at.timestamp()),
        webhook_endpoint_id=delivery.endpoint_id,
        event_id=delivery.event_id,
        event_type=delivery.event_type,
        fine_tuning_job_id=delivery.job_id,
        status=delivery.state,
        attempts=delivery.attempts,
        last_attempt_at=int(delivery.tried_at.timestamp()) if delivery.tried_at else None,
        last_status_code=delivery.status_code,
        last_error=delivery.error,
        next_attempt_at=int(delivery.next_try_at.timestamp()) if delivery.next_try_at else None,
    )


def request_schema() -> dict[str, Any]:
    """The requests' JSON schemas, for the OpenAPI document."""
    models = (EndpointRequest, EndpointChange, RotationRequest, TestRequest)
    return {model.__name__: model.model_json_schema(ref_template=REF) for model in models}
