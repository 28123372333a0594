"""Names as the Hub has them: a model's id and a revision lead to the model whose files are meant.

{id}, main                  the model of that id; an unfinished job's result has none yet
{job's result}, step-500    the checkpoint {job's result}-step-500; `best` likewise
{id}, merged                the model {id}-merged, made of an adapter; step-500-merged, best-merged likewise
{id}, 40 hexadecimal digits whichever of these has that commit
"""

from __future__ import annotations

import re
from typing import NoReturn

from sqlalchemy import ColumnElement, Select, or_, select
from sqlalchemy.orm import Session

from control_plane import models
from control_plane.errors import NotFound
from control_plane.job_states import FINAL
from control_plane.result_names import MERGED, merged_name
from control_plane.tables import Job, Model

MAIN = "main"
REVISION_NOT_FOUND = "revision_not_found"
NAMED_IN_ERROR = 5
"""As many of the newest revisions an error names."""
_NAMED = re.compile(rf"(?:best|step-(?:0|[1-9][0-9]*))(?:-{MERGED})?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve(session: Session, project_id: str, model_id: str, revision: str) -> Model:
    """The model behind an id and a revision.

    Raises NotFound; with the code REVISION_NOT_FOUND where only the id is known.
    """
    query = _query(project_id, model_id, revision)
    found = session.scalars(query.limit(1)).first() if query is not None else None
    return found if found is not None else _refuse(session, project_id, model_id, revision)


def revisions(session: Session, project_id: str, model_id: str) -> dict[str, Model]:
    """Every revision that has a name, `main` first where there is one, then by step. Raises NotFound as `resolve`."""
    found = _named(session, project_id, model_id)
    return found or _refuse(session, project_id, model_id, MAIN)


def _query(project_id: str, model_id: str, revision: str) -> Select[Model] | None:
    """None for what can be no revision."""
    among = models.visible(project_id)
    if revision == MAIN:
        return among.where(Model.id == model_id)
    if revision == MERGED:
        return among.where(_merged_of(model_id))
    if _NAMED.fullmatch(revision):
        return among.where(Model.id == f"{model_id}-{revision}", _of_job(project_id, model_id))
    if _COMMIT.fullmatch(revision):
        own = _own(project_id, model_id)
        return among.where(Model.commit == revision, own).order_by(Model.id)
    return None


def _of_job(project_id: str, result_name: str) -> ColumnElement[bool]:
    """Models of the job that is to publish `result_name`. Its name alone would not do: another model may begin so."""
    job = select(Job.id).where(Job.project_id == project_id, Job.result_name == result_name)
    return Model.job_id == job.scalar_subquery()


def _merged_of(model_id: str) -> ColumnElement[bool]:
    """A base model's name may end so, too."""
    return (Model.id == merged_name(model_id)) & (Model.kind == "checkpoint")


def _own(project_id: str, model_id: str) -> ColumnElement[bool]:
    return or_(Model.id == model_id, _merged_of(model_id), _of_job(project_id, model_id))


def _named(session: Session, project_id: str, model_id: str) -> dict[str, Model]:
    own = _own(project_id, model_id)
    rows = session.scalars(models.visible(project_id).where(own).order_by(Model.step, Model.id)).all()
    names = {MAIN if model.id == model_id else model.id.removeprefix(f"{model_id}-"): model for model in rows}
    found = {name: model for name, model in names.items() if name in (MAIN, MERGED) or _NAMED.fullmatch(name)}
    return dict(sorted(found.items(), key=lambda pair: pair[0] != MAIN))


def _refuse(session: Session, project_id: str, model_id: str, revision: str) -> NoReturn:
    """Says what there is instead. Raises NotFound."""
    named = _named(session, project_id, model_id)
    of_name = select(Job).where(Job.project_id == project_id, Job.result_name == model_id)
    job = session.scalars(of_name).one_or_none()
    if not named and (job is None or job.state in FINAL):
        models.get(session, project_id, model_id)  # refuses it, and names the most similar id
    what = f"It has {', '.join([*named][-NAMED_IN_ERROR:])} and their commits." if named else "It has none yet."
    message = f"{model_id} has no revision {revision!r}. {what}"
    if revision == MAIN and job is not None:
        steps = [name for name in named if name.startswith("step-")]
        use = f"use {steps[-1]}" if steps else "wait for its first checkpoint, step-N"
        why = "its job ended without a last checkpoint" if job.state in FINAL else f"its job is {job.state}"
        message = f"{model_id} has no final model: {why}; {use}. {what}"
    adapter = named.get(revision.removesuffix(MERGED).rstrip("-") or MAIN) if revision.endswith(MERGED) else None
    if adapter is not None and adapter.form == "adapter":
        message = f"{model_id} has no revision {revision!r} yet. {models.how_to_merge(adapter.id)}"
    raise NotFound(message, param="revision", code=REVISION_NOT_FOUND)
