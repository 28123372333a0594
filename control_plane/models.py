"""Models: base models that the operator registered, and the checkpoints of jobs. An id is `{project}/{name}`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import Select, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, defer

from control_plane import audit, checks, projects, removals
from control_plane.database import dpo_now
from control_plane.errors import Conflict, InvalidRequest, NotFound
from control_plane.job_states import FINAL
from control_plane.model_files import list_folder, set_files
from control_plane.model_folder import inspect_folder
from control_plane.result_names import MERGED, merged_name
from control_plane.tables import Checkpoint, Job, Json, Model
from control_plane.validation import nearest

STOP_IT = "cancel that job, or wait for its end"

COMPARED = 500
"""Ids, the newest, that an unknown one is compared with: likeness takes a millisecond for some ten of them."""


def register_base(session: Session, path: Path, name: str | None = None) -> Model:
    """Registers a local folder as `base/{name}`, without copying; `name` defaults to the folder's own.

    Registering the same folder again refreshes its facts. Raises InvalidRequest for a folder that can't
    be trained, and Conflict for a name that another folder has.
    """
    path = path.expanduser().resolve()
    name = path.name if name is None else name
    projects.require_hub_name(name, "model name", "name")
    facts = asdict(inspect_folder(path))
    listed = list_folder(path)  # reads every byte, which may take minutes: before a transaction is begun
    model_id = f"{projects.BASE}/{name}"
    session.execute(
        insert(Model)
        .values(id=model_id, kind="base", form="full", path=str(path), facts=facts)
        .on_conflict_do_nothing(index_elements=["id"])
    )
    model = session.scalars(select(Model).where(Model.id == model_id).with_for_update()).one()
    if model.path != str(path) and model.deleted_at is None:
        raise Conflict(
            f"{model_id} is registered already, as the folder {model.path}; choose another name for {path}.",
            param="name",
            code="model_exists",
        )
    model.path, model.facts, model.deleted_at = str(path), facts, None
    audit.record(session, None, "model.registered", model_id)
    set_files(model, listed)
    checks.forget(session, model_id)  # what they depend on may have changed without a change of the facts
    session.flush()
    return model


def get(session: Session, project_id: str, model_id: str) -> Model:
    """A base model or one of the project's own. An id without a project is a base model's. Raises NotFound."""
    among = visible(project_id)
    return _one(session, among, among.where(Model.id == _full_id(model_id)), model_id)


def hold(session: Session, project_id: str, model_id: str) -> Model:
    """As `get`; nobody can delete the model before this transaction ends."""
    among = visible(project_id)
    query = among.where(Model.id == _full_id(model_id)).with_for_update(read=True, key_share=True)
    return _one(session, among, query, model_id)


def with_base(session: Session, model: Model) -> list[Model]:
    """The model first, then the full one that it stands on, where it is an adapter."""
    return [model, session.get_one(Model, model.base_id)] if model.base_id else [model]


def list_models(session: Session, project_id: str) -> Sequence[Model]:
    """Base models and the project's own, newest first; without their lists of files, which are long."""
    query = visible(project_id).order_by(Model.created_at.desc(), Model.id)
    return session.scalars(query.options(defer(Model.files))).all()


def inherited_facts(start: Model) -> Json:
    """What is true of all that is trained from `start`, too: not that it was merged, and of what."""
    return {name: fact for name, fact in start.facts.items() if name != MERGED}


def delete(session: Session, project_id: str, model_id: str) -> None:
    """Deletes a job's checkpoint and notes the removal of its bytes, which the caller carries out after the commit.

    Raises NotFound, Conflict while something needs it, and InvalidRequest for a base model, which
    belongs to the operator.
    """
    among = visible(project_id)
    model = _one(session, among, among.where(Model.id == model_id).with_for_update(of=Model), model_id)
    if model.kind == "base":
        raise InvalidRequest(
            f"{model_id} is a base model of this installation; its operator can take it out with "
            f"`dpo models remove {model_id}`.",
            param="model",
        )
    # A job's last checkpoint and its result are two names of the same bytes: deleted in turn, the second takes them.
    session.execute(select(Job.id).where(Job.id == model.job_id).with_for_update())
    _refuse_if_needed(session, model)
    merged = _merged(session, model_id)
    if merged is not None:
        _refuse_if_needed(session, merged)
        _remove(session, merged)
    for checkpoint in session.scalars(select(Checkpoint).where(Checkpoint.model_id == model_id)):
        session.delete(checkpoint)
    audit.record(session, project_id, "model.deleted", model_id)
    _remove(session, model)


def retire(session: Session, model_id: str) -> bool:
    """Deletes a checkpoint that its own job, whose row is locked, keeps no longer. False where something needs it, or
    its merged weights are there: somebody serves it.

    One that somebody is about to use or to delete is left to them: waiting for it could be waiting for each other.
    """
    free = select(Model).where(Model.id == model_id).with_for_update(of=Model, skip_locked=True)
    model = session.scalars(free.execution_options(populate_existing=True)).one_or_none()
    served = select(Model.id).where(Model.id == merged_name(model_id), Model.deleted_at.is_(None))
    if model is None or _user(session, model) is not None or session.scalars(served).first() is not None:
        return False
    for checkpoint in session.scalars(select(Checkpoint).where(Checkpoint.model_id == model_id)):
        session.delete(checkpoint)
    _remove(session, model)
    return True


def give_name(session: Session, name: str, job: Job, sources: Sequence[str]) -> tuple[Model, bool]:
    """Another name for the first of the finished job's models `sources` that is still there. Its bytes stay until all
    their names are deleted.

    Also returns whether that changed anything. A name that stood for another checkpoint stands for this one from now
    on. Conflict while something needs the model that has the name, and when no source is left.
    """
    row = {"id": name, "project_id": job.project_id, "kind": "checkpoint", "form": "full"}
    session.execute(insert(Model).values(row).on_conflict_do_nothing(index_elements=["id"]))
    # In the order of `delete`: the name, then whose bytes it stands for and is to stand for.
    model = session.get_one(Model, name, with_for_update=True, populate_existing=True)
    makers = {job.id, model.job_id or job.id}
    session.execute(select(Job.id).where(Job.id.in_(makers)).order_by(Job.id).with_for_update())
    there = select(Model).where(Model.id.in_(sources), Model.deleted_at.is_(None))
    found = {source.id: source for source in session.scalars(there.execution_options(populate_existing=True))}
    source = next((found[source] for source in sources if source in found), None)
    if source is None:
        raise Conflict(
            f"{' and '.join(sources)} are deleted, so there is nothing to give the name {name} to; name another job.",
            param="job",
            code="model_deleted",
        )
    if model.deleted_at is None and model.storage_prefix == source.storage_prefix:
        return model, False
    _refuse_if_needed(session, model)
    outdate_merged(session, name)
    former = model.storage_prefix
    for fact in ("form", "base_id", "storage_prefix", "bytes", "job_id", "step", "facts", "files", "commit"):
        setattr(model, fact, getattr(source, fact))
    model.deleted_at = None
    checks.forget(session, name)
    session.flush()
    note_if_nameless(session, former)
    return model, True


def outdate_merged(session: Session, model_id: str) -> None:
    """The model's id stands for other bytes from now on: what was merged of the former ones goes, unless somebody needs
    it. Then it stays until the next order (merges.py) puts other weights in its place."""
    merged = _merged(session, model_id)
    if merged is not None and _user(session, merged) is None:
        _remove(session, merged)


def _merged(session: Session, model_id: str) -> Model | None:
    """The weights that were merged of an adapter, locked."""
    query = select(Model).where(Model.id == merged_name(model_id), Model.deleted_at.is_(None))
    return session.scalars(query.where(Model.kind == "checkpoint").with_for_update(of=Model)).one_or_none()


def _remove(session: Session, model: Model) -> None:
    model.deleted_at = session.scalars(select(dpo_now())).one()
    checks.forget(session, model.id)
    session.flush()
    note_if_nameless(session, model.storage_prefix)


def note_if_nameless(session: Session, storage_prefix: str | None) -> None:
    """Bytes go with the last model that stands for them."""
    named = select(Model.id).where(Model.storage_prefix == storage_prefix, Model.deleted_at.is_(None))
    if storage_prefix is not None and session.scalars(named).first() is None:
        removals.note(session, storage_prefix)


def unregister_base(session: Session, model_id: str) -> Model:
    """Takes a base model out of the register; its folder stays as it is. Raises NotFound, Conflict."""
    among = select(Model).where(Model.kind == "base", Model.deleted_at.is_(None))
    model = _one(session, among, among.where(Model.id == model_id).with_for_update(), model_id)
    _refuse_if_needed(session, model)
    model.deleted_at = session.scalars(select(dpo_now())).one()
    checks.forget(session, model_id)
    audit.record(session, None, "model.unregistered", model_id)
    session.flush()
    return model


def _refuse_if_needed(session: Session, model: Model) -> None:
    """An unfinished job made it, starts from it or compares with it; or an adapter stands on it."""
    makes = Job.id == (model.job_id or "")
    job_id = session.scalars(select(Job.id).where(Job.state.not_in(FINAL), makes)).first()
    reason = f"in use by the unfinished job {job_id!r}; {STOP_IT}" if job_id else _user(session, model)
    if reason is not None:
        raise Conflict(f"{model.id} is {reason}.", param="model", code="model_in_use")


def _user(session: Session, model: Model) -> str | None:
    """What needs the model, beside the job that makes it, and what to do; None where nothing does."""
    uses = or_(Job.model_id == model.id, Job.training["reference"].astext == model.id)
    job_id = session.scalars(select(Job.id).where(Job.state.not_in(FINAL), uses)).first()
    if job_id is not None:
        return f"in use by the unfinished job {job_id!r}; {STOP_IT}"
    adapter = session.scalars(select(Model.id).where(Model.base_id == model.id, Model.deleted_at.is_(None))).first()
    if adapter is not None:
        return f"what the adapter {adapter!r} stands on, which is nothing without it; delete the adapter first"
    return None


def _full_id(model_id: str) -> str:
    """A script that names its model as it was called elsewhere finds the folder that was registered under that name."""
    return model_id if "/" in model_id else f"{projects.BASE}/{model_id}"


def visible(project_id: str) -> Select[Model]:
    """Base models and the project's own, but for those that are deleted."""
    own_or_base = or_(Model.project_id == project_id, Model.project_id.is_(None))
    return select(Model).where(own_or_base, Model.deleted_at.is_(None))


def _one(session: Session, among: Select[Model], query: Select[Model], model_id: str) -> Model:
    """What `query` picks out of `among`. Raises NotFound, which names the id in `among` most like `model_id`."""
    model = session.scalars(query).one_or_none()
    if model is None:
        newest = among.with_only_columns(Model.id).order_by(Model.created_at.desc(), Model.id).limit(COMPARED)
        like = _most_like(model_id, session.scalars(newest).all())
        raise NotFound(
            f"There is no model {model_id!r} here.{_way_to_merge(session, among, model_id) or like} `dpo models list` "
            "(over HTTP: GET /v1/models) shows them; `dpo models add /path/to/model` registers a base model.",
            param="model",
            code="model_not_found",
        )
    return model


def _way_to_merge(session: Session, among: Select[Model], model_id: str) -> str:
    """How to get the merged weights that an id stands for; an empty string where it stands for none."""
    adapter_id = model_id.removesuffix(f"-{MERGED}")
    found = session.scalars(among.where(Model.id == adapter_id, Model.form == "adapter")).one_or_none()
    return f" {how_to_merge(adapter_id)}" if found is not None and adapter_id != model_id else ""


def how_to_merge(adapter_id: str) -> str:
    return (
        f"The merged weights of {adapter_id} are made on order: `dpo models merge {adapter_id}`, or "
        f"POST /v1/models/{adapter_id}/merge."
    )


def _most_like(model_id: str, known: Sequence[str]) -> str:
    """A question, or an empty string. An id may have been given without its project."""
    short = {name.partition("/")[2]: name for name in known}
    return nearest(model_id, known) or nearest(short.get(model_id, model_id), [*known, *short])
