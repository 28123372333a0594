"""The worker's postman, between a real database and a real receiver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from openai import OpenAI
from sqlalchemy import select

from control_plane import jobs, webhooks
from control_plane.settings import Settings
from control_plane.tables import WebhookDelivery
from tests.receiver import Receiver, receiving
from tests.worker.stubs import World, eventually, worker_process
from worker.webhooks import Postman

OPEN = {"webhook_allow_http": True, "webhook_allow_private": True}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@contextmanager
def postman(settings: Settings) -> Iterator[None]:
    running = Postman(settings)
    running.start()
    try:
        yield
    finally:
        running.stop()


def register(world: World, url: str, settings: Settings) -> str:
    """Its secret."""
    with world.database.transaction() as session:
        return webhooks.create(session, world.project_id, {"url": url}, settings).secret


def deliveries(world: World) -> list[WebhookDelivery]:
    with world.database.transaction() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)))


def hurry(world: World) -> None:
    """What waits is due now."""
    with world.database.transaction() as session:
        session.connection().exec_driver_sql(
            "UPDATE webhook_deliveries SET next_try_at = dpo_now() WHERE state = 'waiting'"
        )


def cancel_a_job(world: World) -> str:
    job_id = world.job()
    with world.database.transaction() as session:
        return jobs.cancel(session, world.project_id, job_id).id


def test_the_worker_tells_of_a_job_that_succeeded(world: World, receiver: Receiver) -> None:
    """The whole way: the stub trainer, the job's end, the POST, and the client that checks the signature."""
    settings = world.settings.model_copy(update=OPEN)
    secret = register(world, receiver.url, settings)
    with worker_process(settings):
        job_id = world.job()
        world.reaches(job_id, "succeeded")
        eventually(lambda: len(receiver.got) == 1, "the webhook came")
        eventually(lambda: [row.state for row in deliveries(world)] == ["delivered"], "it is noted")
    event = OpenAI(api_key="unused").webhooks.unwrap(receiver.got[0].body, receiver.got[0].headers, secret=secret)
    assert event.type == "fine_tuning.job.succeeded"
    assert event.data.id == job_id


def test_what_fails_is_sent_again_with_the_same_id(world: World, receiver: Receiver) -> None:
    settings = world.settings.model_copy(update=OPEN)
    register(world, receiver.url, settings)
    receiver.answers, receiver.location = [500, 302, 204], receiver.url
    with postman(settings):
        cancel_a_job(world)
        for tries, error in ((1, "it answered HTTP 500"), (2, "HTTP 302; redirects are not followed")):
            eventually(lambda: [row.attempts for row in deliveries(world)] == [tries], f"try {tries}")  # noqa: B023
            eventually(lambda: deliveries(world)[0].lease_until is None, "the try is noted")
            (row,) = deliveries(world)
            assert (row.state, row.status_code) == ("waiting", (500, 302)[tries - 1])
            assert row.error is not None and error in row.error
            hurry(world)
        eventually(lambda: deliveries(world)[0].state == "delivered", "it arrived")
    assert len(receiver.got) == 3
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1


def test_a_slow_endpoint_holds_up_no_other(world: World, receiver: Receiver) -> None:
    settings = world.settings.model_copy(update=OPEN)
    with receiving("127.0.0.2") as other:
        register(world, receiver.url, settings)
        register(world, other.url, settings)
        with postman(settings):
            for _ in range(3):
                cancel_a_job(world)
            eventually(lambda: len(receiver.got) == len(other.got) == 3, "all came")


def test_private_addresses_are_refused_by_default(world: World, receiver: Receiver) -> None:
    """Registered while the operator allowed it, or under a name that leads inside: refused when it is sent."""
    register(world, receiver.url, world.settings.model_copy(update=OPEN))
    with postman(world.settings.model_copy(update={"webhook_allow_http": True})):
        cancel_a_job(world)
        eventually(lambda: [row.error is not None for row in deliveries(world)] == [True], "it was tried")
    (row,) = deliveries(world)
    assert row.state == "waiting" and "127.0.0.1 is a loopback address" in str(row.error)
    assert receiver.got == []
