from __future__ import annotations

import socket
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import httpx2
import openai
import pytest
from openai import OpenAI
from sqlalchemy import select

from control_plane import projects
from control_plane.database import Database
from control_plane.quotas import Limits
from control_plane.repetition import Repeatable, find_earlier
from control_plane.settings import Settings
from control_plane.storage import DirectoryStorage
from control_plane.tables import ApiKey
from tests.api.conftest import Api
from tests.control_plane.rows import set_clock_ahead
from tests.service import poll_until

ROWS = b'{"prompt": "What is 1+1?", "chosen": "2", "rejected": "3"}\n' * 100


def stored(settings: Settings) -> list[Path]:
    """Every file in storage, finished or not."""
    folder = Path(settings.storage_url.removeprefix("file://"))
    return [path for path in folder.rglob("*") if path.is_file()]


def refusal(error: openai.APIStatusError) -> dict[str, str]:
    assert isinstance(error.body, dict)
    return error.body


def test_upload_read_delete(client: OpenAI, settings: Settings) -> None:
    file = client.files.create(file=("pairs.jsonl", ROWS), purpose="fine-tune")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(ROWS), "pairs.jsonl", "fine-tune")
    assert file.status == "processed"
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == ROWS
    assert [path.name for path in stored(settings)] == [file.id]
    assert client.files.delete(file.id).deleted
    assert stored(settings) == []
    with pytest.raises(openai.NotFoundError, match="A file appears once its upload is complete"):
        client.files.retrieve(file.id)


def test_list_pages(client: OpenAI) -> None:
    made = [client.files.create(file=(f"{number}.jsonl", ROWS), purpose="fine-tune").id for number in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(order="asc")] == made
    assert list(client.files.list(purpose="batch")) == []
    first = client.files.list(limit=2)
    assert first.has_more and len(first.data) == 2
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.files.list(limit=0)


def test_the_filename_is_only_shown_back(client: OpenAI, settings: Settings) -> None:
    file = client.files.create(file=("../../etc/päss wd.jsonl", ROWS), purpose="fine-tune")
    assert file.filename == "päss wd.jsonl"
    assert [path.name for path in stored(settings)] == [file.id]
    assert client.files.content(file.id).read() == ROWS


@pytest.mark.parametrize("order", [["purpose", "file"], ["file", "purpose"]])
def test_the_parts_may_come_in_any_order(http: httpx2.Client, order: list[str]) -> None:
    parts = {
        "purpose": b'Content-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n',
        "file": b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + ROWS + b"\r\n",
    }
    body = b"".join(b"--x\r\n" + parts[name] for name in order) + b"--x--\r\n"
    answer = http.post("/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 200, answer.text
    assert http.get(f"/v1/files/{answer.json()['id']}/content").content == ROWS


def test_refused_forms(http: httpx2.Client, settings: Settings) -> None:
    file = {"file": ("a.jsonl", ROWS)}
    for answer, param, words in [
        (http.post("/v1/files", files=file), "purpose", "no `purpose`"),
        (http.post("/v1/files", files=file, data={"purpose": "assistants"}), "purpose", "'fine-tune'"),
        (http.post("/v1/files", files={"purpose": (None, "fine-tune")}), "file", "no `file`"),
        (http.post("/v1/files", files={"file": ("a", b"")}, data={"purpose": "fine-tune"}), "file", "is empty"),
        (http.post("/v1/files", files=[*file.items(), *file.items()]), "file", "two `file` parts"),
        (http.post("/v1/files", files={"file": (None, "text")}), "file", "as a text field"),
        (http.post("/v1/files", files=file, data={"purpos": "fine-tune"}), "purpos", "unknown field"),
        (http.post("/v1/files", files=file, data={"expires_after": "3600"}), "expires_after", "unknown field"),
        (http.post("/v1/files", files=file, data={"purpose": "x" * 20_000}), "purpose", "too long"),
        (http.post("/v1/files", json={"purpose": "fine-tune"}), "file", "multipart/form-data"),
    ]:
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert words in answer.json()["error"]["message"]
    assert stored(settings) == []
    assert http.get("/v1/files").json()["data"] == []


def test_too_large(serve: Callable[[Settings], Api], settings: Settings, secret: str) -> None:
    api = serve(settings.model_copy(update={"max_file_bytes": 1_000_000}))
    with OpenAI(base_url=f"{api.url}/v1", api_key=secret, max_retries=0) as client:
        assert client.files.create(file=("full.jsonl", b"x" * 1_000_000), purpose="fine-tune").bytes == 1_000_000
        for size in (1_000_001, 3_000_000):  # found out while reading, and from Content-Length
            with pytest.raises(openai.APIStatusError, match="1,000,000 bytes") as refused:
                client.files.create(file=("large.jsonl", b"x" * size), purpose="fine-tune")
            assert refused.value.status_code == 413
    assert len(stored(settings)) == 1


@pytest.mark.parametrize("place", ["before", "behind"])
def test_bytes_around_the_form_count_too(
    serve: Callable[[Settings], Api], settings: Settings, secret: str, place: str
) -> None:
    """They are stored nowhere, but who sends them without end keeps a connection and a core busy."""
    api = serve(settings.model_copy(update={"max_file_bytes": 1000}))
    form = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\nx\r\n--x--\r\n'
    )
    filling = [b"\r\n" * 50_000] * 2
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": f"Bearer {secret}"}
    parts = [*filling, form] if place == "before" else [form, *filling]
    answer = httpx2.post(f"{api.url}/v1/files", content=iter(parts), headers=headers, timeout=60)
    assert answer.status_code == 413, answer.text
    assert stored(settings) == []


def test_an_upload_cut_off_half_way_leaves_nothing(api: Api, client: OpenAI, settings: Settings, secret: str) -> None:
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {api.host}\r\nAuthorization: Bearer {secret}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 10000000\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        '--x\r\nContent-Disposition: form-data; name="file"; filename="cut.jsonl"\r\n\r\n'
    )
    with socket.create_connection((api.host, api.port)) as connection:
        connection.sendall(head.encode() + ROWS * 400)
        wait_until(lambda: len(stored(settings)) == 1)
        assert client.files.list().data == [], "a file that is still uploading must not be seen"
    wait_until(lambda: stored(settings) == [])
    assert client.files.list().data == []


def test_a_form_without_its_end_is_refused(http: httpx2.Client, settings: Settings) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + ROWS
    answer = http.post("/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400
    assert "cut off" in answer.json()["error"]["message"]
    assert stored(settings) == []


def test_another_projects_file_is_not_there(client: OpenAI, make_key: Callable[[str], str]) -> None:
    file = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    other = client.with_options(api_key=make_key("other"))
    assert other.files.list().data == []
    for call in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)
    assert client.files.retrieve(file.id).id == file.id


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_refused_expiries(http: httpx2.Client, settings: Settings) -> None:
    for given, param, words in [
        ({"anchor": "created_at", "seconds": "3599"}, "expires_after.seconds", "3600"),
        ({"anchor": "created_at", "seconds": "2592001"}, "expires_after.seconds", "2592000"),
        ({"anchor": "created_at", "seconds": "soon"}, "expires_after.seconds", "integer"),
        ({"anchor": "last_active_at", "seconds": "3600"}, "expires_after.anchor", "created_at"),
        ({"seconds": "3600"}, "expires_after.anchor", "missing"),
        ({"anchor": "created_at"}, "expires_after.seconds", "missing"),
    ]:
        form = {"purpose": "fine-tune", **{f"expires_after[{name}]": value for name, value in given.items()}}
        refused = http.post("/v1/files", files={"file": ("a.jsonl", ROWS)}, data=form)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == param
        assert words in refused.json()["error"]["message"]
    assert stored(settings) == []


def test_an_expired_file_is_gone(client: OpenAI, database: Database) -> None:
    kept = client.files.create(file=("kept.jsonl", ROWS), purpose="fine-tune")
    expiry = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune", expires_after=expiry)  # type: ignore[arg-type]
    assert (file.expires_at, kept.expires_at) == (file.created_at + 3600, None)
    assert len(client.files.list().data) == 2
    with database.transaction() as session:
        set_clock_ahead(session, 3600)
    assert client.files.list().data == [kept]
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PURPOSE = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'


def test_ten_thousand_parts(http: httpx2.Client, settings: Settings) -> None:
    """Refused at the first part that can't be, however small each is, and however many headers one has."""
    empty = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n\r\n'
    many_headers = b"--x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n"
    for body, words in [
        (PURPOSE * 10_000, "two `purpose` parts"),
        (empty * 10_000, "purpose '' is not supported"),
        (b"".join(empty.replace(b"purpose", b"field-%d" % n) for n in range(10_000)), "unknown field 'field-0'"),
        (b"--x\r\n\r\n\r\n" * 10_000, "unknown field ''"),
        (many_headers, "valid multipart form"),
    ]:
        refused = http.post("/v1/files", content=body + b"--x--\r\n", headers=FORM)
        assert refused.status_code == 400, refused.text
        assert words in refused.json()["error"]["message"]
    assert stored(settings) == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../../etc/cron.d/job.jsonl", "job.jsonl"),
        ("..\\..\\windows\\job.jsonl", "job.jsonl"),
        ("..%2f..%2fetc%2fpasswd", "..%2f..%2fetc%2fpasswd"),
        ("..", ".."),
        ("$(touch x);`id`|&.jsonl", "$(touch x);`id`|&.jsonl"),
        ("a\0b\x1b[31m.jsonl", "ab[31m.jsonl"),
        ("x" * 3_000, "x" * 255),
        ("folder/", "file"),
    ],
)
def test_odd_file_names(http: httpx2.Client, settings: Settings, name: str, shown: str) -> None:
    """Kept to be shown back, and never a path or a header of their own."""
    head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    answer = http.post("/v1/files", content=PURPOSE + head + ROWS + b"\r\n--x--\r\n", headers=FORM)
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == shown
    assert [path.name for path in stored(settings)] == [answer.json()["id"]]
    content = http.get(f"/v1/files/{answer.json()['id']}/content")
    assert content.content == ROWS
    assert content.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")


@pytest.mark.parametrize("length", [100, 10_000_000])
def test_a_length_that_is_a_lie(serve: Callable[[Settings], Api], settings: Settings, secret: str, length: int) -> None:
    """Too short: the rest is not read as file. Too long: the server stops waiting for what never comes."""
    api = serve(settings.model_copy(update={"idle_seconds": 0.5}))
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + ROWS + b"\r\n--x--\r\n"
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {api.host}\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Type: {FORM['Content-Type']}\r\nContent-Length: {length}\r\n\r\n"
    )
    with socket.create_connection((api.host, api.port), timeout=20) as connection:
        connection.sendall(head.encode() + PURPOSE + part[:-8])
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    status, words = (b" 400 ", b"was cut off") if length == 100 else (b" 408 ", b"Nothing of the request's body came")
    assert status in answer.splitlines()[0]
    assert words in answer
    wait_until(lambda: stored(settings) == [])


def test_a_file_that_is_deleted_just_when_it_is_read(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    file = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    original = DirectoryStorage.open

    def delete_first(storage: DirectoryStorage, key: str) -> BinaryIO:
        monkeypatch.undo()
        client.files.delete(file.id)
        return original(storage, key)

    monkeypatch.setattr(DirectoryStorage, "open", delete_first)
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)


def test_an_upload_that_is_sent_again_makes_no_second_file(client: OpenAI, settings: Settings) -> None:
    """By the key that a caller gives, or by the openai client's word that it retries."""

    def create(content: bytes = ROWS, **headers: str) -> str:
        return client.files.create(file=("a.jsonl", content), purpose="fine-tune", extra_headers=headers).id

    first = create(**{"Idempotency-Key": "one"})
    assert create(**{"Idempotency-Key": "one"}) == first
    with pytest.raises(openai.BadRequestError, match="with another body") as refused:
        create(ROWS * 2, **{"Idempotency-Key": "one"})
    assert refusal(refused.value)["code"] == "idempotency_key_reused"
    second = create()
    assert create(**{"x-stainless-retry-count": "1"}) == second != first
    third = create()
    assert third not in (first, second), "sent on purpose, the same bytes are another file"
    assert sorted(path.name for path in stored(settings)) == sorted((first, second, third))
    client.files.delete(first)
    assert create(**{"Idempotency-Key": "one"}) not in (first, second, third), "what is deleted is made anew"


def test_an_upload_whose_client_hung_up_before_its_turn_leaves_nothing(
    http: httpx2.Client, client: OpenAI, database: Database, settings: Settings
) -> None:
    form = {"purpose": (None, b"fine-tune"), "file": ("f.jsonl", b"{}\n")}
    body = {
        "file": {
            "filename": "f.jsonl",
            "purpose": "fine-tune",
            "bytes": 3,
            "sha256": sha256(b"{}\n").hexdigest(),
            "expires_after": None,
        }
    }
    with database.transaction() as session:
        key = session.scalars(select(ApiKey)).one()
        find_earlier(session, key.project_id, body, Repeatable(api_key_id=key.id))
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/files", files=form, timeout=1)
        assert stored(settings) != []
    poll_until(lambda: stored(settings) == [], "its bytes are gone")
    assert list(client.files.list()) == []
    assert http.post("/v1/files", files=form).status_code == 200


def test_too_much_for_the_project_is_refused_before_it_is_sent(  # noqa: PLR0917 - fixtures
    api: Api, http: httpx2.Client, client: OpenAI, settings: Settings, secret: str, database: Database
) -> None:
    client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune", extra_headers={"Idempotency-Key": "one"})
    with database.transaction() as session:
        projects.set_limits(session, projects.named(session, "default"), Limits(bytes=len(ROWS) + 1000))
    with socket.create_connection((api.host, api.port), timeout=20) as connection:
        connection.sendall(
            f"POST /v1/files HTTP/1.1\r\nHost: {api.host}\r\nAuthorization: Bearer {secret}\r\n"
            f"Content-Type: {FORM['Content-Type']}\r\nContent-Length: 10000000\r\n\r\n".encode()
        )
        answer = b""
        while b"quota_bytes" not in answer and (chunk := connection.recv(65536)):
            answer += chunk
    assert b" 403 " in answer.splitlines()[0] and b"more than the 1,000 that are left" in answer
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    # Without a length, and with one that the form's other parts could have: found out while it comes.
    for content in (iter([PURPOSE, part, b"x" * 100_000]), PURPOSE + part + b"x" * 1001 + b"\r\n--x--\r\n"):
        refused = http.post("/v1/files", content=content, headers=FORM)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "quota_bytes")
    upload = client.uploads.create(bytes=1000, filename="a", mime_type="text/plain", purpose="fine-tune")
    refused = http.post(f"/v1/uploads/{upload.id}/parts", files={"data": ("a", bytes(1001))})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "quota_bytes")
    assert len(stored(settings)) == 1
    client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune", extra_headers={"Idempotency-Key": "one"})
    assert len(stored(settings)) == 1, "a repetition adds nothing, so it is not too much"
