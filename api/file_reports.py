"""/v1/files/{id}/report and /preview: what a file holds, and what a model will see of it."""

from __future__ import annotations

from typing import Annotated, Literal

import anyio
from fastapi import APIRouter, Query, Response
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from api.answers import LONGEST_WAIT, PENDING, Answer, Wait, answered, failure_of
from api.auth import Caller, CallerOf
from api.services import ServicesOf
from control_plane import checks, files, models
from control_plane.checks import State
from control_plane.errors import InvalidRequest
from control_plane.questions import about_file, about_rows, about_tokens
from control_plane.tables import Check, File, Model
from dpo_core.data.columns import what_is_wrong
from dpo_core.data.file_report import FileReport, TokenReport
from dpo_core.data.preview import ROWS, Preview

MOST_ROWS = 20

router = APIRouter(prefix="/v1/files", tags=["files"])

ModelId = Annotated[str, Query(min_length=1, description="A model whose tokenizer and chat template are used.")]


Columns = Annotated[
    str | None,
    Query(
        description='What the file calls fields of its rows, as in `training.columns`: `{"prompt": "question"}`.',
        max_length=10_000,
    ),
]


class FileReportObject(Answer):
    object: Literal["file.report"] = "file.report"
    file: str
    model: str | None
    report: FileReport | None
    """None until the file was read."""

    tokens: TokenReport | None
    """With `model`: what that makes of the rows. None until `state` is done."""


class FilePreviewObject(Answer):
    object: Literal["file.preview"] = "file.preview"
    file: str
    model: str
    preview: Preview | None
    """None until `state` is done."""


@router.get("/{file_id}/report", summary="What a file holds, by all of its rows", responses=PENDING)
async def report_file(
    file_id: str,
    services: ServicesOf,
    caller: CallerOf,
    response: Response,
    *,
    model: ModelId | None = None,
    columns: Columns = None,
    wait: Wait = 0,
) -> FileReportObject:
    """Every file is checked after its upload. `wait` long-polls; without it the answer comes at once, as it is."""
    named = _named(columns)

    def ask(session: Session) -> Check:
        file = files.hold(session, caller.project_id, file_id)
        return checks.ask(session, caller.project_id, about_file(file, named))

    def ask_with_model(session: Session) -> Check:
        file, with_base = _held(session, caller, file_id, str(model))
        return checks.ask(session, caller.project_id, about_tokens(file, with_base, named))

    until = anyio.current_time() + wait
    check = await answered(services, ask, wait, response)
    last, tokens = check, None
    if model is not None:
        last = tokens = await answered(services, ask_with_model, max(0.0, until - anyio.current_time()), response)
    return FileReportObject(
        file=file_id,
        model=model,
        state=State(check.state if check.state != State.done else last.state),
        error=failure_of(check) or failure_of(last),
        report=FileReport.model_validate(check.result) if check.result else None,
        tokens=TokenReport.model_validate(tokens.result) if tokens and tokens.result else None,
    )


@router.get("/{file_id}/preview", summary="What a model will see of some rows", responses=PENDING)
async def preview_file(
    file_id: str,
    services: ServicesOf,
    caller: CallerOf,
    response: Response,
    *,
    model: ModelId,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS, description="So many of the first rows.")] = ROWS,
    lines: Annotated[
        list[Annotated[int, Query(ge=1)]] | None,
        Query(max_length=MOST_ROWS, description="These lines instead; at most `limit` rows of one."),
    ] = None,
    max_length: Annotated[int | None, Query(ge=8, description="Tokens that a sequence may have.")] = None,
    columns: Columns = None,
    wait: Wait = LONGEST_WAIT,
) -> FilePreviewObject:
    """Every token with its id and its text, what it is for, and what `max_length` cuts away: as in training."""
    named = _named(columns)

    def ask(session: Session) -> Check:
        file, with_base = _held(session, caller, file_id, model)
        question = about_rows(file, with_base, limit=limit, lines=lines or [], max_length=max_length, columns=named)
        return checks.ask(session, caller.project_id, question)

    check = await answered(services, ask, wait, response)
    return FilePreviewObject(
        file=file_id,
        model=model,
        state=State(check.state),
        error=failure_of(check),
        preview=Preview.model_validate(check.result) if check.result else None,
    )


def _named(columns: str | None) -> dict[str, str]:
    """From the JSON text of a query. Raises InvalidRequest."""
    if columns is None:
        return {}
    try:
        named = TypeAdapter(dict[str, str]).validate_json(columns, strict=True)
    except ValidationError:
        message = '`columns` must be a JSON object of names, such as {"prompt": "question"}.'
        raise InvalidRequest(message, param="columns") from None
    if problem := what_is_wrong(named):
        raise InvalidRequest(problem, param="columns")
    return named


def _held(session: Session, caller: Caller, file_id: str, model_id: str) -> tuple[File, list[Model]]:
    """The file, and the model with what it stands on. Raises NotFound."""
    file = files.hold(session, caller.project_id, file_id)
    return file, models.with_base(session, models.hold(session, caller.project_id, model_id))
