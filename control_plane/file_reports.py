"""What is known of an uploaded file, and the refusal of a job that could not train on any of its rows."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import checks
from control_plane.checks import State
from control_plane.errors import InvalidRequest
from control_plane.questions import about_file
from control_plane.tables import Check, File
from dpo_core.data.file_report import FileReport
from dpo_core.data.problems import problem_in_words
from dpo_core.spec import TrainingSpec


def report_of(session: Session, file: File) -> FileReport | None:
    """None as long as the file was not checked."""
    check = checks.find(session, file.project_id, about_file(file))
    if check is None or check.state != State.done:
        return None
    return FileReport.model_validate(check.result)


def refuse_unusable(session: Session, file: File, spec: TrainingSpec, param: str) -> None:
    """Raises InvalidRequest if it is known that no row of the file can be used for the job's method.

    A file that was not checked yet passes: validation reads every row anyway. So does one whose columns the job
    names itself: it was checked without them.
    """
    if spec.columns or _may_be_usable(session, file, spec):
        return
    report = report_of(session, file)
    if report is None:
        return
    other = report.examples if spec.method == "dpo" else report.pairs
    lines = [f"No row of the file {file.id!r} can be used for method `{spec.method}`."]
    if other:
        better = "supervised" if spec.method == "dpo" else "dpo"
        lines.append(f"{other:,} of its {report.rows:,} rows are for method `{better}`: ask for that.")
    lines += [problem_in_words(it.code, it.message, it.count, it.lines) for it in report.problems]
    lines.append(f"GET /v1/files/{file.id}/report says more.")
    raise InvalidRequest("\n".join(lines), param=param, code=f"invalid_{param}")


def _may_be_usable(session: Session, file: File, spec: TrainingSpec) -> bool:
    """Whether any row is for the job's method, or nobody knows yet. Of the report, which may be long, one number."""
    usable = Check.result["pairs" if spec.method == "dpo" else "examples"].as_integer()
    known = select(usable).where(Check.project_id == file.project_id, Check.digest == about_file(file).digest)
    return session.scalar(known.where(Check.state == State.done)) != 0
