"""/v1/files: upload, list, read back, delete."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, BackgroundTasks, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel

from api.auth import Caller, CallerOf, FilesWriter
from api.forms import FormShape, Received, most_of, receive_form
from api.lists import After, Item, ListOf, list_of
from api.repeats import RepeatsOf
from api.sending import STORED_FILE, StoredFile, again_if_gone
from api.services import Services, ServicesOf
from control_plane import files, quotas, removals
from control_plane.errors import InvalidRequest
from control_plane.files import ExpiresAfter, NewFile
from control_plane.ids import new_id
from control_plane.quotas import Room
from control_plane.repetition import Repeatable
from control_plane.storage import file_key
from control_plane.tables import File
from control_plane.validation import validated

router = APIRouter(prefix="/v1/files", tags=["files"])


def _check_field(name: str, value: str) -> None:
    if name == "purpose":
        files.require_purpose(value)


FORM = FormShape(
    file="file",
    example="file=@pairs.jsonl",
    if_too_large="Send it packed with gzip or zstd, split it, or ask the operator to raise DPO_MAX_FILE_BYTES.",
    fields=("purpose", "expires_after[anchor]", "expires_after[seconds]"),
    check=_check_field,
)

UPLOAD_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(files.PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
                    },
                }
            }
        },
    }
}


class FileObject(Item):
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: str
    status_details: str | None


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


@router.post("", summary="Upload a file", openapi_extra=UPLOAD_FORM)
async def upload_file(
    request: Request, services: ServicesOf, caller: FilesWriter, *, repeats: RepeatsOf, background: BackgroundTasks
) -> FileObject:
    """The form's parts may come in any order. The file appears once all of it is stored; then it is checked.

    A request that is sent again (same Idempotency-Key, or the openai client's own retry) makes no second file.
    """
    file_id = new_id("file")
    room = await run_in_threadpool(_expect, services, caller, file_id)
    # A repetition adds nothing, even where the first one took the last of the room; what is none is counted in the end.
    most = most_of(FORM, services.settings.max_file_bytes, None if repeats.possible else room)
    most.require(request.headers)
    sink = services.storage.writer(file_key(file_id))
    form = await receive_form(
        request.stream(),
        request.headers.get("content-type"),
        sink,
        FORM,
        most=most,
        idle_seconds=services.settings.idle_seconds,
    )
    background.add_task(services.hints.send)
    return await run_in_threadpool(_record, services, caller, file_id, form, repeats.by(caller))


@router.get("", summary="List files")
def list_files(
    services: ServicesOf,
    caller: CallerOf,
    *,
    purpose: str | None = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=files.MAX_LIMIT)] = files.MAX_LIMIT,
    order: Literal["asc", "desc"] = "desc",
) -> ListOf[FileObject]:
    with services.database.transaction() as session:
        page = files.list_files(session, caller.project_id, purpose=purpose, after=after, limit=limit, order=order)
        return list_of([file_object(file) for file in page.items], page.has_more)


@router.get("/{file_id}", summary="Read a file's facts")
def retrieve_file(file_id: str, services: ServicesOf, caller: CallerOf) -> FileObject:
    with services.database.transaction() as session:
        return file_object(files.get(session, caller.project_id, file_id))


@router.get("/{file_id}/content", summary="Read a file's bytes", response_class=Response, responses=STORED_FILE)
@again_if_gone
def read_content(file_id: str, services: ServicesOf, caller: CallerOf) -> Response:
    """In part with `Range`, and not again with `If-None-Match`. The ETag is the SHA-256 of the bytes."""
    with services.database.transaction() as session:
        file = files.get(session, caller.project_id, file_id)
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}"}
    return StoredFile(services.storage.open(file.storage_key), size=file.bytes, etag=file.sha256, headers=headers)


@router.delete("/{file_id}", summary="Delete a file that no unfinished job uses")
def delete_file(file_id: str, services: ServicesOf, caller: FilesWriter) -> FileDeleted:
    with services.database.transaction(actor=caller.actor) as session:
        files.delete(session, caller.project_id, file_id)
    removals.carry_out(services.database, services.storage)
    return FileDeleted(id=file_id)


def _expect(services: Services, caller: Caller, file_id: str) -> Room | None:
    """Before the first byte is stored. Returns what the project may still store."""
    with services.database.transaction() as session:
        removals.expect(session, file_key(file_id))
        return quotas.room(session, caller.project_id, services.limits)


def _record(services: Services, caller: Caller, file_id: str, form: Received, repeatable: Repeatable) -> FileObject:
    """The row of a file whose bytes are stored. They go at once where the row can't be made, or was made before by this
    same request; after a commit that was not answered they stay, because the row may be there."""
    with services.database.transaction(actor=caller.actor) as session:
        try:
            file = files.create(
                session,
                caller.project_id,
                file_id,
                NewFile(form.filename, _purpose(form), form.bytes, form.sha256, _expires_after(form)),
                repeatable=repeatable,
                limits=services.limits,
            )
            if file.id == file_id:
                removals.keep(session, file_key(file_id))
        except BaseException:
            services.storage.delete(file_key(file_id))
            raise
        shape = file_object(file)
    if shape.id != file_id:
        services.storage.delete(file_key(file_id))
    return shape


def _purpose(form: Received) -> str:
    if "purpose" not in form.fields:
        raise InvalidRequest("The form has no `purpose`; with curl: -F purpose=fine-tune.", param="purpose")
    return form.fields["purpose"]


def _expires_after(form: Received) -> ExpiresAfter | None:
    """The form's `expires_after[…]` fields, as OpenAI's clients write an object into a form."""
    given = {
        name: form.fields[f"expires_after[{name}]"]
        for name in ("anchor", "seconds")
        if f"expires_after[{name}]" in form.fields
    }
    return validated(ExpiresAfter, given, where="expires_after") if given else None


def file_object(file: File) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created_at.timestamp()),
        expires_at=int(file.expires_at.timestamp()) if file.expires_at else None,
        filename=file.filename,
        purpose=file.purpose,
        status=file.status,
        status_details=file.status_details,
    )
