"""A job's events as server-sent events: in order, each once, to the end, for many listeners at once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI, Stream
from sqlalchemy import text

from api import event_stream
from control_plane import events, models
from control_plane.database import Database
from control_plane.tables import Job
from tests.api.conftest import Api
from tests.api.test_jobs import JOBS, ROWS, create
from tests.control_plane.model_folders import make_folder

LISTENERS = 100
"""Three times as many as the API has connections to PostgreSQL, and more than twice its threads."""

CREATED = ["job_created", "validating_files", "no_worker_large_enough"]
"""The events of a job that was just made, where no worker runs."""


@pytest.fixture
def job(client: OpenAI, http: httpx2.Client, database: Database, tmp_path: Path) -> dict[str, Any]:
    with database.transaction() as session:
        models.register_base(session, make_folder(tmp_path / "tiny"))
    file = client.files.create(file=("pairs.jsonl", ROWS), purpose="fine-tune")
    return create(http, {"model": "base/tiny", "training_file": file.id, "method": {"type": "dpo"}})


def tell(database: Database, job_id: str, message: str) -> None:
    with database.transaction() as session:
        events.add(session, session.get_one(Job, job_id), code="told", message=message)


def messages(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Id and data of every event, as a browser would read them."""
    event_id = ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            event_id = value
        elif name == "data":
            yield event_id, json.loads(value)


@contextmanager
def listening(http: httpx2.Client, job_id: str, **headers: str) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    url = f"{JOBS}/{job_id}/events"
    with http.stream("GET", url, params={"stream": "true"}, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield messages(answer.iter_lines())


def test_events_arrive_in_order_while_they_happen_until_the_last_one(
    http: httpx2.Client, job: dict[str, Any], database: Database
) -> None:
    with listening(http, job["id"]) as heard:
        first = [next(heard) for _ in CREATED]
        assert [data["data"]["code"] for _, data in first] == CREATED
        for number in range(3):
            tell(database, job["id"], f"number {number}")
            assert next(heard)[1]["message"] == f"number {number}"
        http.post(f"{JOBS}/{job['id']}/cancel")
        rest = list(heard)
    assert [data["data"]["code"] for _, data in rest] == ["job_cancelled"]
    listed = http.get(f"{JOBS}/{job['id']}/events").json()["data"]
    assert [first[0], first[1]] == [(event["id"], event) for event in listed[::-1][:2]], "the list's own objects"


def test_the_clients_own_stream_reads_it(
    client: OpenAI, job: dict[str, Any], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first line on, and past the comments that keep a silent connection alive."""
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.05)
    path = f"/fine_tuning/jobs/{job['id']}/events?stream=true"
    with client.get(path, cast_to=object, stream=True, stream_cls=Stream[Any]) as heard:
        codes = [next(heard)["data"]["code"] for _ in CREATED]
        silent = threading.Timer(0.3, tell, (database, job["id"], "after a silence"))
        silent.start()
        assert next(heard)["message"] == "after a silence"
        silent.join()
        client.fine_tuning.jobs.cancel(job["id"])
        codes += [event["data"]["code"] for event in heard]
    assert codes == [*CREATED, "job_cancelled"]


def test_a_listener_that_was_cut_off_goes_on_behind_what_it_heard(
    http: httpx2.Client, job: dict[str, Any], database: Database
) -> None:
    with listening(http, job["id"]) as heard:
        event_id, _ = [next(heard) for _ in CREATED][-1]
    tell(database, job["id"], "meanwhile")
    http.post(f"{JOBS}/{job['id']}/cancel")
    with listening(http, job["id"], **{"Last-Event-ID": event_id}) as heard:
        rest = list(heard)
    assert [data["message"] for _, data in rest] == ["meanwhile", "The job was cancelled."]
    stop = http.get(f"{JOBS}/{job['id']}/events", params={"stream": "true"}, headers={"Last-Event-ID": rest[-1][0]})
    assert (stop.status_code, stop.content) == (204, b""), "a browser asks no more after a 204"


def test_what_cant_be_streamed_is_refused_before_the_stream(
    http: httpx2.Client, job: dict[str, Any], make_key: Callable[[str], str]
) -> None:
    url = f"{JOBS}/{job['id']}/events?stream=true"
    unknown = http.get(url, headers={"Last-Event-ID": "ftevent-none"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "Last-Event-ID")
    other = http.get(url, headers={"Authorization": f"Bearer {make_key('other')}"})
    assert other.status_code == 404


def test_a_silent_stream_is_kept_alive_by_comments(
    http: httpx2.Client, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.05)
    with http.stream("GET", f"{JOBS}/{job['id']}/events", params={"stream": "true"}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "retry: 2000"
        assert sum(next(lines) == ":" for _ in range(30)) > 3


async def _listen(client: httpx2.AsyncClient, job_id: str, begun: Callable[[], None]) -> list[str]:
    heard: list[str] = []
    async with client.stream("GET", f"{JOBS}/{job_id}/events", params={"stream": "true"}) as answer:
        lines: AsyncIterator[str] = answer.aiter_lines()
        async for line in lines:
            if line.startswith("data: "):
                heard.append(json.loads(line[6:])["message"])
            if len(heard) == len(CREATED) and line.startswith("data: "):
                begun()
    return heard


def test_many_listeners_cost_no_threads_and_no_connections(
    api: Api, secret: str, http: httpx2.Client, job: dict[str, Any], database: Database
) -> None:
    ready = threading.Semaphore(0)
    results: list[list[str]] = []

    async def all_of_them() -> None:
        limits = httpx2.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {secret}"}
        async with httpx2.AsyncClient(base_url=api.url, headers=headers, limits=limits, timeout=60) as client:
            results.extend(await asyncio.gather(*(_listen(client, job["id"], ready.release) for _ in range(LISTENERS))))

    thread = threading.Thread(target=asyncio.run, args=(all_of_them(),))
    thread.start()
    for _ in range(LISTENERS):
        assert ready.acquire(timeout=60)
    with database.transaction() as session:
        used = session.scalar(
            text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
        )
    assert used is not None and used <= 30
    assert http.get(f"{JOBS}/{job['id']}").status_code == 200, "others are served meanwhile"
    tell(database, job["id"], "to all")
    http.post(f"{JOBS}/{job['id']}/cancel")
    thread.join(60)
    assert len(results) == LISTENERS
    assert {tuple(heard[len(CREATED) :]) for heard in results} == {("to all", "The job was cancelled.")}


def test_a_server_that_stops_ends_its_streams(database: Database, job: dict[str, Any]) -> None:
    """The stream ends well, and the client comes back with the last id that it heard."""
    feed = event_stream.Feed(database)
    feed.stopping = lambda: True

    async def heard() -> list[str]:
        return [part async for part in event_stream.stream(feed, job["id"], 0)]

    assert [part.partition(":")[0] for part in asyncio.run(heard())] == ["retry"] + ["id"] * len(CREATED)
