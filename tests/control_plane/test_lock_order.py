"""What two transactions take, they take in one order: neither ends in a deadlock, whoever comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.orm import Session

from control_plane import deliveries, events, jobs, leases, quotas, uploads, webhooks
from control_plane.database import Database
from control_plane.deliveries import Outcome
from control_plane.job_states import State
from control_plane.project_removal import delete_project
from control_plane.quotas import Limits
from control_plane.settings import Settings
from control_plane.tables import Project, UploadPart, WebhookDelivery, WebhookEndpoint
from control_plane.uploads import CompletionRequest, Content
from tests.control_plane.rows import PROJECT, job_in, started
from tests.service import poll_until

SETTINGS = Settings(database_url=SecretStr("postgresql://"), redis_url=SecretStr("redis://"), storage_url="file:///x")


@contextmanager
def meanwhile(database: Database, work: Callable[[Session], object]) -> Iterator[None]:
    """`work` in a transaction of its own, which waits for one of the block's locks before the block begins. Raises what
    it raised."""

    def run() -> None:
        with database.transaction() as session:
            work(session)

    def waits() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        with database.engine.connect() as connection:
            return connection.scalar(text(query)) == 1

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run)
        poll_until(lambda: waits() or other.done(), "the other transaction waits", seconds=20, every=0.02)
        assert not other.done(), "it must have waited"
        yield
    other.result()


def test_a_report_while_its_project_is_deleted(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as worker:
        job = leases.held(worker, claim)
        with meanwhile(stocked, lambda session: delete_project(session, "default")):
            events.add(worker, job, code="x", message="x")
            worker.flush()
            worker.commit()
    with stocked.transaction() as session:
        assert session.get(Project, PROJECT) is None


def test_a_delivery_that_is_noted_while_its_endpoint_is_deleted(stocked: Database) -> None:
    with stocked.transaction() as session:
        endpoint_id = webhooks.create(session, PROJECT, {"url": "https://hooks.example/x"}, SETTINGS).id
        jobs.cancel(session, PROJECT, job_in(session, State.queued).id)
    with stocked.transaction() as session:
        sent = deliveries.claim(session, "postman-1")
    assert sent is not None
    with stocked.transaction() as worker:
        worker.get_one(WebhookDelivery, sent.delivery_id, with_for_update=True)
        with meanwhile(stocked, lambda session: webhooks.remove(session, PROJECT, endpoint_id)):
            deliveries.report(worker, sent, Outcome(204, None), disable_after=deliveries.PATIENCE)
            worker.commit()
    with stocked.transaction() as session:
        assert session.get(WebhookEndpoint, endpoint_id) is None


def test_a_part_while_its_upload_is_completed(stocked: Database) -> None:
    """The part comes too late; the completion is not disturbed."""
    asked = {"bytes": 3, "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    limits = Limits(bytes=1000)
    with stocked.transaction() as session:
        upload_id = uploads.create(session, PROJECT, asked, max_bytes=1000).id
        uploads.add_part(session, PROJECT, upload_id, part_id="part-1", bytes=3, limits=limits)
    request = CompletionRequest(part_ids=["part-1"])
    content = Content("file-9", "files/file-9", 3, "0")
    refused: list[Exception] = []

    def late(session: Session) -> None:
        try:
            uploads.add_part(session, PROJECT, upload_id, part_id="part-2", bytes=3, limits=limits)
        except uploads.Conflict as error:
            refused.append(error)

    with stocked.transaction() as completing:
        uploads.read(completing, PROJECT, upload_id)
        with meanwhile(stocked, late):
            assert uploads.complete(completing, PROJECT, upload_id, request, content)
            completing.commit()
    assert "is completed; begin a new one" in str(refused[0])
    with stocked.transaction() as session:
        assert session.get(UploadPart, "part-2") is None
        assert quotas.usage(session, PROJECT).bytes >= 3
