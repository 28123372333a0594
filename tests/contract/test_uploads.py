"""Files that expire and uploads in parts, by the unmodified openai client."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import FileObject, Upload
from openai.types.uploads import UploadPart

from control_plane.settings import Settings
from tests.api.conftest import Api

ROWS = b'{"prompt": "What is 1+1?", "chosen": "2", "rejected": "3"}\n' * 100
MD5 = hashlib.md5(ROWS, usedforsecurity=False).hexdigest()


def begin(client: OpenAI, size: int = len(ROWS)) -> Upload:
    return client.uploads.create(
        bytes=size, filename="../pairs.jsonl", mime_type="application/jsonl", purpose="fine-tune"
    )


def objects(settings: Settings) -> list[str]:
    """The folder of every object in storage."""
    root = Path(settings.storage_url.removeprefix("file://"))
    return sorted(path.parent.relative_to(root).parts[0] for path in root.rglob("*") if path.is_file())


def test_a_file_in_chunks(client: OpenAI, tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(ROWS)
    upload = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=1000, md5=MD5
    )
    Upload.model_validate(upload.model_dump(), strict=True)
    assert (upload.status, upload.bytes, upload.filename) == ("completed", len(ROWS), "pairs.jsonl")
    assert upload.expires_at == upload.created_at + 3600
    assert upload.file is not None
    assert client.files.retrieve(upload.file.id) == upload.file
    assert client.files.content(upload.file.id).content == ROWS
    report = client.get(f"/files/{upload.file.id}/report", cast_to=object)
    assert isinstance(report, dict) and report["state"] == "waiting", "it is checked like any other file"
    assert objects(settings) == ["files"], "the parts are gone"


def test_the_async_client_in_chunks(api: Api, secret: str) -> None:
    async def upload() -> bytes:
        async with AsyncOpenAI(base_url=f"{api.url}/v1", api_key=secret, max_retries=0) as client:
            done = await client.uploads.upload_file_chunked(
                file=ROWS,
                filename="a.jsonl",
                bytes=len(ROWS),
                mime_type="text/plain",
                purpose="fine-tune",
                part_size=999,
            )
            assert done.file is not None
            return (await client.files.content(done.file.id)).content

    assert asyncio.run(upload()) == ROWS


def test_parts_follow_one_another_as_the_completion_says(client: OpenAI) -> None:
    upload = begin(client)
    assert (upload.status, upload.file) == ("pending", None)
    last = client.uploads.parts.create(upload.id, data=ROWS[5000:])
    UploadPart.model_validate(last.model_dump(), strict=True)
    client.uploads.parts.create(upload.id, data=ROWS[:5000])  # its answer was lost, and the client sent it again
    first = client.uploads.parts.create(upload.id, data=ROWS[:5000])
    done = client.uploads.complete(upload.id, part_ids=[first.id, last.id], md5=MD5.upper())
    assert done.file is not None
    FileObject.model_validate(done.file.model_dump(), strict=True)
    assert client.files.content(done.file.id).content == ROWS


def test_a_completion_that_is_repeated_makes_one_file(client: OpenAI) -> None:
    upload = begin(client)
    part = client.uploads.parts.create(upload.id, data=ROWS)
    answers = [client.uploads.complete(upload.id, part_ids=[part.id]) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert len(client.files.list().data) == 1
    with pytest.raises(openai.BadRequestError, match="is completed") as refused:
        client.uploads.complete(upload.id, part_ids=["part-other"])
    assert refused.value.code == "upload_completed"
    with pytest.raises(openai.BadRequestError, match="delete its file"):
        client.uploads.cancel(upload.id)


def test_a_refused_completion_loses_nothing(client: OpenAI) -> None:
    upload, other = begin(client), begin(client)
    first, last = (client.uploads.parts.create(upload.id, data=data) for data in (ROWS[:5000], ROWS[5000:]))
    foreign = client.uploads.parts.create(other.id, data=ROWS[5000:])
    both = [first.id, last.id]
    for part_ids, md5, param, code, words in [
        ([first.id], MD5, "part_ids", "wrong_size", "The parts hold 5,000 bytes together"),
        ([first.id, foreign.id], MD5, "part_ids.1", "part_not_found", foreign.id),
        ([first.id, last.id, first.id], MD5, "part_ids", "part_repeated", "twice"),
        (both[::-1], MD5, "md5", "md5_mismatch", "Check their order"),
        (both, "0" * 32, "md5", "md5_mismatch", MD5),
        (both, "no md5", "md5", "invalid_value", "md5"),
        ([], MD5, "part_ids", "invalid_value", "at least 1"),
    ]:
        with pytest.raises(openai.BadRequestError, match=words) as refused:
            client.uploads.complete(upload.id, part_ids=part_ids, md5=md5)
        assert (refused.value.param, refused.value.code) == (param, code)
    assert client.files.list().data == []
    assert client.uploads.complete(upload.id, part_ids=both, md5=MD5).status == "completed"


def test_cancel(client: OpenAI, settings: Settings) -> None:
    upload = begin(client)
    part = client.uploads.parts.create(upload.id, data=ROWS)
    assert objects(settings) == ["uploads"]
    for _ in range(2):  # a client repeats what was not answered
        assert client.uploads.cancel(upload.id).status == "cancelled"
    assert objects(settings) == []
    for call in (
        lambda: client.uploads.parts.create(upload.id, data=ROWS),
        lambda: client.uploads.complete(upload.id, part_ids=[part.id]),
    ):
        with pytest.raises(openai.BadRequestError, match="is cancelled; begin a new one"):
            call()
    assert objects(settings) == []


def test_an_upload_with_an_expiry(client: OpenAI) -> None:
    upload = client.post(
        "/uploads",
        cast_to=Upload,
        body={
            "bytes": len(ROWS),
            "filename": "a",
            "mime_type": "text/plain",
            "purpose": "fine-tune",
            "expires_after": {"anchor": "created_at", "seconds": 7200},
        },
    )
    part = client.uploads.parts.create(upload.id, data=ROWS)
    file = client.uploads.complete(upload.id, part_ids=[part.id]).file
    assert file is not None and file.expires_at == file.created_at + 7200
