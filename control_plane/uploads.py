"""Uploads: a large file sent in parts, which become one file when all of them are there.

    pending ──complete──▶ completed        the parts become a file
       ├──────cancel────▶ cancelled
       └──────an hour───▶ expired

Parts lie under `uploads/{upload}/{part}`. However an upload ends, they go. Clients repeat what was not answered: a
part that was sent twice is there twice, and the completion names the one that it means; the same completion again
answers with the same file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field
from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.orm import Session

from control_plane import audit, checks, files, quotas, removals
from control_plane.database import dpo_now
from control_plane.errors import Conflict, InvalidRequest, NotFound, TooLarge
from control_plane.filenames import clean_filename
from control_plane.files import ExpiresAfter
from control_plane.ids import new_id
from control_plane.questions import about_file
from control_plane.quotas import Limits
from control_plane.repetition import Repeatable, find_earlier, remember
from control_plane.storage import Storage, upload_prefix
from control_plane.tables import File, Json, Upload, UploadPart
from control_plane.validation import json_object, validated
from dpo_core.spec import StrictModel

MAX_PART_BYTES = 64 * 1024**2
"""OpenAI's bound, and the size of the parts that its client makes."""

LIFETIME = timedelta(hours=1)
"""OpenAI's."""

GRACE = timedelta(minutes=10)
"""How long the parts of an expired upload stay: a completion that began in time may still be reading them."""

SENT_AT_MOST = 3
"""How often OpenAI's client sends a part; an upload has room for as many copies of itself."""

READ_BYTES = 1024**2
SWEPT_AT_ONCE = 100


class UploadRequest(StrictModel):
    """The body that begins an upload."""

    filename: Annotated[str, Field(min_length=1)]
    purpose: str
    bytes: Annotated[int, Field(ge=1)]
    mime_type: Annotated[str, Field(max_length=255)]
    """Taken for OpenAI's sake: what a file is, its first bytes tell."""
    expires_after: ExpiresAfter | None = None


class CompletionRequest(StrictModel):
    """The body that ends an upload."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    """In the order of their bytes."""
    md5: Annotated[str, Field(pattern="^[0-9a-fA-F]{32}$")] | None = None
    """Of the whole file."""


@dataclass(frozen=True)
class Content:
    """Parts that were joined in storage."""

    file_id: str
    storage_key: str
    bytes: int
    sha256: str


def create(
    session: Session,
    project_id: str,
    body: object,
    *,
    max_bytes: int,
    limits: Limits = quotas.NONE,
    repeatable: Repeatable | None = None,
) -> Upload:
    """Begins an upload, or finds the one that this same request began before. TooLarge for a file that would be above
    `max_bytes`, QuotaExceeded for one above `limits`."""
    repeatable = repeatable or Repeatable()
    request = validated(UploadRequest, json_object(body))
    described: Json = {"upload": request.model_dump()}
    earlier = find_earlier(session, project_id, described, repeatable)
    if earlier is not None:
        return session.get_one(Upload, earlier)
    files.require_purpose(request.purpose)
    if request.bytes > max_bytes:
        raise TooLarge(
            f"`bytes` is {request.bytes:,}, and a file may have {max_bytes:,}. Send it packed with gzip or zstd, split "
            "it, or ask the operator to raise DPO_MAX_FILE_BYTES.",
            param="bytes",
            code="file_too_large",
        )
    quotas.require_bytes(session, project_id, request.bytes, limits)
    now = session.scalars(select(dpo_now())).one()
    upload = Upload(
        id=new_id("upload"),
        project_id=project_id,
        created_at=now,
        expires_at=now + LIFETIME,
        filename=clean_filename(request.filename),
        purpose=request.purpose,
        bytes=request.bytes,
        file_expires_after=request.expires_after.model_dump() if request.expires_after else None,
        status="pending",
    )
    session.add(upload)
    audit.record(session, project_id, "upload.created", upload.id)
    session.flush()
    remember(session, project_id, described, repeatable, upload)
    return upload


def require_open(session: Session, project_id: str, upload_id: str) -> Upload:
    """The upload, which may get parts until this transaction ends. NotFound, and Conflict for one that is over."""
    upload = _one(session, project_id, upload_id)
    if upload.status != "pending":
        raise Conflict(f"The upload {upload_id!r} is {upload.status}; begin a new one.", code=f"upload_{upload.status}")
    if session.scalar(select(Upload.id).where(Upload.id == upload_id, _over())) is not None:
        raise Conflict(
            f"The upload {upload_id!r} expired an hour after it was begun; begin a new one.", code="upload_expired"
        )
    return upload


def add_part(
    session: Session, project_id: str, upload_id: str, *, part_id: str, bytes: int, limits: Limits = quotas.NONE
) -> UploadPart:
    """Makes a part known whose bytes are in storage. Conflict where the upload has no room for it, QuotaExceeded where
    the project has none."""
    upload = require_open(session, project_id, upload_id)
    quotas.require_bytes(session, project_id, bytes, limits)  # in the order of `complete`: the upload, then the project
    there = session.scalar(
        select(func.coalesce(func.sum(UploadPart.bytes), 0)).where(UploadPart.upload_id == upload_id)
    )
    if int(there or 0) + bytes > SENT_AT_MOST * upload.bytes:
        raise Conflict(
            f"The parts of upload {upload_id!r} would hold more than {SENT_AT_MOST} times the {upload.bytes:,} bytes "
            "that it was begun for. Complete it with the parts that you mean, or cancel it.",
            code="too_many_parts",
        )
    part = UploadPart(id=part_id, project_id=project_id, upload_id=upload_id, bytes=bytes)
    session.add(part)
    session.flush()
    return part


def plan(session: Session, project_id: str, upload_id: str, request: CompletionRequest) -> list[str] | None:
    """The storage keys of the parts to be joined; None where this very completion was done before.

    InvalidRequest for parts that are not the upload's, or are not as long as was said; nothing is lost by that.
    """
    if _done_before(_one(session, project_id, upload_id), request):
        return None
    upload = require_open(session, project_id, upload_id)
    known = {part.id: part.bytes for part in session.scalars(_parts(upload_id))}
    for number, part_id in enumerate(request.part_ids):
        if part_id not in known:
            raise InvalidRequest(
                f"The upload {upload_id!r} has no part {part_id!r}; send it, and name the id that comes back.",
                param=f"part_ids.{number}",
                code="part_not_found",
            )
    if len(set(request.part_ids)) < len(request.part_ids):
        raise InvalidRequest("`part_ids` names a part twice; name each once.", param="part_ids", code="part_repeated")
    total = sum(known[part_id] for part_id in request.part_ids)
    if total != upload.bytes:
        raise InvalidRequest(
            f"The parts hold {total:,} bytes together, and the upload was begun for {upload.bytes:,}. Name all of its "
            "parts, send what is missing, or begin a new upload.",
            param="part_ids",
            code="wrong_size",
        )
    return [part_key(upload_id, part_id) for part_id in request.part_ids]


def join(storage: Storage, keys: Sequence[str], file_id: str, storage_key: str, md5: str | None) -> Content:
    """Writes the parts behind one another into `storage_key`, in constant memory.

    InvalidRequest where the whole has another MD5; then, as after any error, nothing is left of it. FileNotFoundError
    where a part went meanwhile.
    """
    sha256, whole_md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with storage.writer(storage_key) as sink:
        for key in keys:
            with storage.open(key) as part:
                while chunk := part.read(READ_BYTES):
                    sha256.update(chunk)
                    if md5 is not None:
                        whole_md5.update(chunk)
                    sink.write(chunk)
                    size += len(chunk)
        if md5 is not None and whole_md5.hexdigest() != md5.lower():
            raise InvalidRequest(
                f"The parts joined in this order have the MD5 {whole_md5.hexdigest()}, not {md5.lower()}. Check their "
                "order, and send again what was damaged; the parts are still there.",
                param="md5",
                code="md5_mismatch",
            )
    return Content(file_id, storage_key, size, sha256.hexdigest())


def complete(session: Session, project_id: str, upload_id: str, request: CompletionRequest, content: Content) -> bool:
    """The joined parts become a file, which is then checked like any other. False where a repetition was faster:
    then `content` is nobody's. Conflict where the upload was cancelled meanwhile, or its parts went."""
    upload = _one(session, project_id, upload_id)
    if _done_before(upload, request):
        return False
    if upload.status != "pending":
        raise Conflict(f"The upload {upload_id!r} is {upload.status}; begin a new one.", code=f"upload_{upload.status}")
    expiry = ExpiresAfter.model_validate(upload.file_expires_after) if upload.file_expires_after else None
    file = files.add(
        session,
        project_id,
        filename=upload.filename,
        purpose=upload.purpose,
        bytes=content.bytes,
        sha256=content.sha256,
        storage_key=content.storage_key,
        file_id=content.file_id,
        expires_after=expiry,
    )
    checks.ask(session, project_id, about_file(file))
    upload.file_id, upload.part_ids = file.id, request.part_ids
    _end(session, upload, "completed")
    return True


def cancel(session: Session, project_id: str, upload_id: str) -> Upload:
    """Ends an upload without a file; cancelling twice changes nothing. Conflict for one that is completed."""
    upload = _one(session, project_id, upload_id)
    if upload.status == "completed":
        raise Conflict(
            f"The upload {upload_id!r} is completed; delete its file {upload.file_id!r} instead.",
            code="upload_completed",
        )
    if upload.status == "pending":
        _end(session, upload, "cancelled")
        audit.record(session, project_id, "upload.cancelled", upload_id)
    return upload


def read(session: Session, project_id: str, upload_id: str) -> tuple[Upload, File | None]:
    """The upload and, while that is there, its file."""
    upload = _one(session, project_id, upload_id)
    file = None
    if upload.file_id is not None:
        file = files.find(session, project_id, upload.file_id)
    return upload, file


def end_expired(session: Session) -> int:
    """Ends the uploads whose time is over; returns how many. Those that somebody has locked wait for the next time."""
    late = select(Upload).where(Upload.status == "pending", Upload.expires_at <= dpo_now() - GRACE)
    query = late.order_by(Upload.expires_at).limit(SWEPT_AT_ONCE).with_for_update(skip_locked=True)
    found = session.scalars(query).all()
    for upload in found:
        _end(session, upload, "expired")
    return len(found)


def part_key(upload_id: str, part_id: str) -> str:
    return f"{upload_prefix(upload_id)}/{part_id}"


def _end(session: Session, upload: Upload, status: Literal["completed", "cancelled", "expired"]) -> None:
    upload.status = status
    session.execute(delete(UploadPart).where(UploadPart.upload_id == upload.id))
    removals.note(session, upload_prefix(upload.id))
    session.flush()


def _done_before(upload: Upload, request: CompletionRequest) -> bool:
    return upload.status == "completed" and upload.part_ids == request.part_ids


def _parts(upload_id: str) -> Select[UploadPart]:
    return select(UploadPart).where(UploadPart.upload_id == upload_id)


def _over() -> ColumnElement[bool]:
    return Upload.expires_at <= dpo_now()


def _one(session: Session, project_id: str, upload_id: str) -> Upload:
    """The project's upload, locked: its parts, its completion and its end come one after another."""
    query = select(Upload).where(Upload.project_id == project_id, Upload.id == upload_id).with_for_update()
    upload = session.scalars(query).one_or_none()
    if upload is None:
        raise NotFound(f"There is no upload {upload_id!r} in this project.", param="upload_id")
    return upload
