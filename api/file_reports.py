"""/v1/files/{id}/report: what a file holds, by all of its rows."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response

from api.answers import PENDING, Answer, Wait, answered, failure_of
from api.auth import CallerOf
from api.services import ServicesOf
from control_plane import checks, files
from control_plane.checks import State
from control_plane.questions import about_file
from dpo_core.data.file_report import FileReport

router = APIRouter(prefix="/v1/files", tags=["files"])


class FileReportObject(Answer):
    object: Literal["file.report"] = "file.report"
    file: str
    report: FileReport | None
    """None until `state` is done."""


@router.get("/{file_id}/report", summary="What a file holds, by all of its rows", responses=PENDING)
async def report_file(
    file_id: str, services: ServicesOf, caller: CallerOf, response: Response, wait: Wait = 0
) -> FileReportObject:
    """Every file is checked after its upload. `wait` long-polls; without it the answer comes at once, as it is."""
    check = await answered(
        services,
        lambda session: checks.ask(
            session, caller.project_id, about_file(files.hold(session, caller.project_id, file_id))
        ),
        wait,
        response,
    )
    return FileReportObject(
        file=file_id,
        state=State(check.state),
        error=failure_of(check),
        report=FileReport.model_validate(check.result) if check.result else None,
    )
