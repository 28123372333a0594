"""/v1/uploads: a large file in parts."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from api.auth import Caller, FilesWriter
from api.files import FileObject, file_object
from api.forms import FormShape, most_of, receive_form
from api.json_body import JsonBody
from api.repeats import RepeatsOf
from api.services import Services, ServicesOf
from control_plane import quotas, removals, uploads
from control_plane.errors import Conflict
from control_plane.ids import new_id
from control_plane.quotas import Room
from control_plane.storage import file_key
from control_plane.tables import File, Upload, UploadPart
from control_plane.uploads import MAX_PART_BYTES, CompletionRequest, UploadRequest
from control_plane.validation import json_object, validated

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

FORM = FormShape(file="data", example="data=@part-1", if_too_large="Cut the file into smaller parts.")


def _body(schema: dict[str, Any], media_type: str = "application/json") -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


PART_FORM = _body(
    {"type": "object", "required": ["data"], "properties": {"data": {"type": "string", "format": "binary"}}},
    "multipart/form-data",
)
REF = "#/components/schemas/{model}"


class UploadObject(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None


class UploadPartObject(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


@router.post(
    "",
    summary="Begin an upload in parts",
    openapi_extra=_body({"$ref": REF.format(model="UploadRequest")}),
)
def create_upload(caller: FilesWriter, body: JsonBody, services: ServicesOf, repeats: RepeatsOf) -> UploadObject:
    """It waits an hour for its parts and its completion. Sent again, as for files, it begins no second one."""
    with services.database.transaction(actor=caller.actor) as session:
        upload = uploads.create(
            session,
            caller.project_id,
            body,
            max_bytes=services.settings.max_file_bytes,
            limits=services.limits,
            repeatable=repeats.by(caller),
        )
        return _shape(*uploads.read(session, caller.project_id, upload.id))


@router.post("/{upload_id}/parts", summary="Send a part, of at most 64 MiB", openapi_extra=PART_FORM)
async def add_part(upload_id: str, request: Request, services: ServicesOf, caller: FilesWriter) -> UploadPartObject:
    """Parts may be sent side by side and in any order: the completion says how they follow one another."""
    room = await run_in_threadpool(_require_open, services, caller, upload_id)
    most = most_of(FORM, MAX_PART_BYTES, room)
    most.require(request.headers)
    part_id = new_id("part")
    form = await receive_form(
        request.stream(),
        request.headers.get("content-type"),
        services.storage.writer(uploads.part_key(upload_id, part_id)),
        FORM,
        most=most,
        idle_seconds=services.settings.idle_seconds,
    )
    return await run_in_threadpool(_add_part, services, caller, upload_id, part_id, form.bytes)


@router.post(
    "/{upload_id}/complete",
    summary="Join the parts into a file",
    openapi_extra=_body({"$ref": REF.format(model="CompletionRequest")}),
)
def complete_upload(upload_id: str, caller: FilesWriter, body: JsonBody, services: ServicesOf) -> UploadObject:
    """The file is checked like any other. A refusal loses nothing: the parts stay for another try."""
    request = validated(CompletionRequest, json_object(body))
    with services.database.transaction() as session:
        keys = uploads.plan(session, caller.project_id, upload_id, request)
    if keys is not None:
        _join(services, caller, upload_id, request, keys)
    removals.carry_out(services.database, services.storage)
    return _read(services, caller, upload_id)


@router.post("/{upload_id}/cancel", summary="End an upload without a file")
def cancel_upload(upload_id: str, services: ServicesOf, caller: FilesWriter) -> UploadObject:
    with services.database.transaction(actor=caller.actor) as session:
        uploads.cancel(session, caller.project_id, upload_id)
    removals.carry_out(services.database, services.storage)
    return _read(services, caller, upload_id)


def _require_open(services: Services, caller: Caller, upload_id: str) -> Room | None:
    """Before anything is read: a body that nobody could use. What the project may still store."""
    with services.database.transaction() as session:
        uploads.require_open(session, caller.project_id, upload_id)
        return quotas.room(session, caller.project_id, services.limits)


def _add_part(services: Services, caller: Caller, upload_id: str, part_id: str, size: int) -> UploadPartObject:
    with services.database.transaction(actor=caller.actor) as session:
        try:
            limits = services.limits
            part = uploads.add_part(session, caller.project_id, upload_id, part_id=part_id, bytes=size, limits=limits)
        except BaseException:
            services.storage.delete(uploads.part_key(upload_id, part_id))
            raise
        return _part_shape(part)


def _join(services: Services, caller: Caller, upload_id: str, request: CompletionRequest, keys: list[str]) -> None:
    """No transaction is open while the bytes are copied. What a repetition of this request joined meanwhile wins."""
    file_id = new_id("file")
    with services.database.transaction() as session:
        removals.expect(session, file_key(file_id))
    try:
        content = uploads.join(services.storage, keys, file_id, file_key(file_id), request.md5)
    except FileNotFoundError:  # completed by a repetition, cancelled or expired meanwhile
        with services.database.transaction() as session:
            if uploads.plan(session, caller.project_id, upload_id, request) is None:
                return
        raise Conflict(f"Storage lost parts of the upload {upload_id!r}; begin a new one.", code="parts_lost") from None
    with services.database.transaction(actor=caller.actor) as session:
        try:
            mine = uploads.complete(session, caller.project_id, upload_id, request, content)
            if mine:
                removals.keep(session, content.storage_key)
        except BaseException:
            services.storage.delete(content.storage_key)
            raise
    if mine:
        services.hints.send()
    else:
        services.storage.delete(content.storage_key)


def _read(services: Services, caller: Caller, upload_id: str) -> UploadObject:
    with services.database.transaction() as session:
        return _shape(*uploads.read(session, caller.project_id, upload_id))


def _shape(upload: Upload, file: File | None) -> UploadObject:
    return UploadObject(
        id=upload.id,
        bytes=upload.bytes,
        created_at=int(upload.created_at.timestamp()),
        expires_at=int(upload.expires_at.timestamp()),
        filename=upload.filename,
        purpose=upload.purpose,
        status=upload.status,
        file=file_object(file) if file is not None else None,
    )


def _part_shape(part: UploadPart) -> UploadPartObject:
    return UploadPartObject(id=part.id, created_at=int(part.created_at.timestamp()), upload_id=part.upload_id)


def request_schema() -> dict[str, Any]:
    """The requests' JSON schemas and those they refer to, for the OpenAPI document."""
    schemas: dict[str, Any] = {}
    for model in (UploadRequest, CompletionRequest):
        schema = model.model_json_schema(ref_template=REF)
        schemas |= {**schema.pop("$defs", {}), model.__name__: schema}
    return schemas
