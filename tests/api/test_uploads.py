"""What the openai client would not do with an upload, and what time does to one."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable

import httpx2
import openai
import pytest
from openai import OpenAI

from control_plane import removals, uploads
from control_plane.database import Database
from control_plane.settings import Settings
from control_plane.storage import open_storage
from control_plane.uploads import GRACE, LIFETIME, MAX_PART_BYTES
from tests.api.test_files import ROWS, stored
from tests.control_plane.rows import set_clock_ahead

BODY = {"bytes": len(ROWS), "filename": "a.jsonl", "mime_type": "text/plain", "purpose": "fine-tune"}


def begin(client: OpenAI, size: int = len(ROWS)) -> str:
    return client.uploads.create(bytes=size, filename="a", mime_type="text/plain", purpose="fine-tune").id


def test_refused_beginnings(http: httpx2.Client) -> None:
    for change, status, param, words in [
        ({"bytes": 0}, 400, "bytes", "greater than or equal to 1"),
        ({"bytes": 9 * 1024**3}, 413, "bytes", "DPO_MAX_FILE_BYTES"),
        ({"purpose": "assistants"}, 400, "purpose", "'fine-tune'"),
        ({"filename": ""}, 400, "filename", "at least 1"),
        ({"filename": "a\0b"}, 400, None, "NUL"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "expires_after.seconds", "3600"),
        ({"parts": 3}, 400, "parts", "no field"),
    ]:
        refused = http.post("/v1/uploads", json=BODY | change)
        assert refused.status_code == status, refused.text
        assert refused.json()["error"]["param"] == param
        assert words in refused.json()["error"]["message"]


def test_refused_parts(http: httpx2.Client, client: OpenAI, settings: Settings) -> None:
    upload_id = begin(client)
    for form, status, words in [
        ({"file": ("a", ROWS)}, 400, "unknown field 'file'"),
        ({"data": ("a", b"")}, 400, "is empty"),
        ({"data": (None, "text")}, 400, "as a text field"),
        ({"data": ("a", bytes(MAX_PART_BYTES + 1))}, 413, "Cut the file into smaller parts"),
        ({"data": ("a", bytes(3 * len(ROWS) + 1))}, 400, "more than 3 times"),
    ]:
        refused = http.post(f"/v1/uploads/{upload_id}/parts", files=form)
        assert refused.status_code == status, refused.text
        assert words in refused.json()["error"]["message"]
    assert stored(settings) == []


def test_another_projects_upload_is_not_there(client: OpenAI, make_key: Callable[[str], str]) -> None:
    upload_id = begin(client)
    part = client.uploads.parts.create(upload_id, data=ROWS)
    other = client.with_options(api_key=make_key("other"))
    for call in (
        lambda: other.uploads.parts.create(upload_id, data=ROWS),
        lambda: other.uploads.complete(upload_id, part_ids=[part.id]),
        lambda: other.uploads.cancel(upload_id),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    theirs = begin(other)
    with pytest.raises(openai.BadRequestError, match="has no part"):
        other.uploads.complete(theirs, part_ids=[part.id])


def test_an_hour_later_it_is_over(client: OpenAI, database: Database, settings: Settings) -> None:
    upload_id = begin(client)
    part = client.uploads.parts.create(upload_id, data=ROWS)
    with database.transaction() as session:
        assert uploads.end_expired(session) == 0
        set_clock_ahead(session, LIFETIME.total_seconds())
    for call in (
        lambda: client.uploads.parts.create(upload_id, data=ROWS),
        lambda: client.uploads.complete(upload_id, part_ids=[part.id]),
    ):
        with pytest.raises(openai.BadRequestError, match="expired an hour after it was begun") as refused:
            call()
        assert refused.value.code == "upload_expired"
    with database.transaction() as session:
        assert uploads.end_expired(session) == 0, "a completion that began in time may still read the parts"
        set_clock_ahead(session, (LIFETIME + GRACE).total_seconds())
        assert uploads.end_expired(session) == 1
    removals.carry_out(database, open_storage(settings.storage_url))
    assert stored(settings) == []
    assert client.uploads.cancel(upload_id).status == "expired"


def test_completions_side_by_side_make_one_file(client: OpenAI, settings: Settings) -> None:
    upload_id = begin(client, 32 * len(ROWS))
    part_ids = [client.uploads.parts.create(upload_id, data=ROWS).id for _ in range(32)]
    answers: list[object] = []
    tries = [
        threading.Thread(target=lambda: answers.append(client.uploads.complete(upload_id, part_ids=part_ids)))
        for _ in range(4)
    ]
    for attempt in tries:
        attempt.start()
    for attempt in tries:
        attempt.join(60)
    assert len(answers) == 4 and all(answer == answers[0] for answer in answers)
    assert len(client.files.list().data) == 1
    assert len(stored(settings)) == 1


def test_joining_takes_no_memory(database: Database, settings: Settings) -> None:
    """This process's peak rises by less than half of what is joined."""
    storage = open_storage(settings.storage_url)
    size, keys = 0, []
    for number in range(4):
        keys.append(f"uploads/upload-1/part-{number}")
        with storage.writer(keys[-1]) as sink:
            for _ in range(64):
                size += sink.write(bytes(1024**2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = uploads.join(storage, keys, "file-1", "files/file-1", None)
    assert content.bytes == size == 256 * 1024**2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 * 1024


def test_an_upload_that_is_begun_again_is_the_same(client: OpenAI) -> None:
    def create(size: int = 5, **headers: str) -> str:
        return client.uploads.create(
            bytes=size, filename="a", mime_type="text/plain", purpose="fine-tune", extra_headers=headers
        ).id

    first = create(**{"Idempotency-Key": "one"})
    assert create(**{"Idempotency-Key": "one"}) == first
    with pytest.raises(openai.BadRequestError, match="with another body"):
        create(6, **{"Idempotency-Key": "one"})
    second = create()
    assert create(**{"x-stainless-retry-count": "2"}) == second != first
    assert create() not in (first, second)
