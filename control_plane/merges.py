"""An adapter's merged weights: a model of its own, `{adapter}-merged`, made when somebody orders it.

The order is a check (checks.py): leased, rescued and asked once, but answered with a model instead of facts. Merged
weights stand by themselves: what starts from them needs neither the adapter nor its base. With the adapter they go.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from control_plane import audit, checks, model_card, models, quotas
from control_plane.checks import Claim, State
from control_plane.database import dpo_now
from control_plane.errors import InvalidRequest, StaleFence
from control_plane.model_files import list_checkpoint, set_files
from control_plane.questions import about_merging
from control_plane.quotas import Limits
from control_plane.result_names import MAX_ID, MERGED, merged_name
from control_plane.tables import Check, Json, Model
from dpo_core.run_directory import Manifest

FACTS = ("form", "base_id", "storage_prefix", "bytes", "job_id", "step", "facts", "files", "commit")
"""What another name for the same bytes has in common with the first."""


def order(session: Session, project_id: str, model_id: str, *, limits: Limits = quotas.NONE) -> Check:
    """The order to merge a model, made if it is new; done at once where the same weights have another name already.

    Send a hint after the commit where it waits. Raises NotFound, InvalidRequest for what is no adapter, and
    QuotaExceeded.
    """
    adapter = models.hold(session, project_id, model_id)
    if adapter.form != "adapter":
        raise InvalidRequest(
            f"{adapter.id} has all its weights already; only an adapter, what a job with `lora` makes, can be merged.",
            param="model",
            code="not_an_adapter",
        )
    name = merged_name(adapter.id)
    if len(name) > MAX_ID:
        raise InvalidRequest(
            f"{name} is longer than the {MAX_ID} characters that the Hub's clients take. Merge the job's result or its "
            "best checkpoint, whose names are shorter.",
            param="model",
            code="name_too_long",
        )
    adapter, base = models.with_base(session, adapter)
    question = about_merging([adapter, base], name)
    made = _made_before(session, adapter, base)
    if checks.find(session, project_id, question) is None:
        if made is None:
            quotas.require_bytes(session, project_id, question.body["bytes"], limits)
        audit.record(session, project_id, "model.merge_ordered", adapter.id)
    check = checks.ask(session, project_id, question)
    if made is not None and check.state == State.waiting:
        _put(session, name, adapter, {fact: getattr(made, fact) for fact in FACTS})
        checks.answer(session, check, {"model": name})
    return check


def card(session: Session, claim: Claim) -> str:
    """The merged model's README.md. StaleFence when the order is no longer this claim's."""
    order = checks.work_order(session, claim)
    adapter = order.models[order.check.question["model"]]
    return model_card.for_merged(order.check.question["makes"], adapter, order.models[adapter.base_id or ""])


def publish(session: Session, claim: Claim, manifest: Manifest, storage_prefix: str) -> None:
    """Makes the merged weights, which are in storage, known as a model. StaleFence when the order is no longer this
    claim's, as after the adapter's deletion."""
    named = session.scalar(select(Check.question).where(Check.id == claim.check_id))
    if named is None:
        raise StaleFence(f"{claim.check_id} is gone; nothing of it is stored.")
    # In the order of models.delete: the adapter, what was merged of it, then the checks about them.
    ids = (named["model"], named["makes"])
    session.execute(select(Model.id).where(Model.id.in_(ids)).order_by(Model.id).with_for_update())
    checks.finish(session, claim, {"model": named["makes"]})
    adapter, base = models.with_base(session, session.get_one(Model, named["model"]))
    facts: Json = {
        "form": "full",
        "base_id": None,
        "storage_prefix": storage_prefix,
        "bytes": sum(file.bytes for file in manifest.files),
        "job_id": adapter.job_id,
        "step": adapter.step,
        "facts": {**adapter.facts, MERGED: _origin(adapter, base)},
    }
    set_files(_put(session, named["makes"], adapter, facts), list_checkpoint(manifest))


def _origin(adapter: Model, base: Model) -> Json:
    return {"adapter": adapter.commit, "base": base.id, "base_commit": base.commit}


def _made_before(session: Session, adapter: Model, base: Model) -> Model | None:
    """A model that was merged of the same bytes: a checkpoint, a job's result and its best have several names."""
    if adapter.commit is None or base.commit is None:
        return None
    same = Model.facts.contains({MERGED: _origin(adapter, base)})
    mine = Model.project_id == adapter.project_id
    return session.scalars(select(Model).where(mine, same, Model.deleted_at.is_(None)).limit(1)).first()


def _put(session: Session, name: str, adapter: Model, facts: Json) -> Model:
    """The model `name`, new or with other bytes than before."""
    row = {"id": name, "project_id": adapter.project_id, "kind": "checkpoint", "form": "full"}
    session.execute(insert(Model).values(row).on_conflict_do_nothing(index_elements=["id"]))
    model = session.get_one(Model, name, with_for_update=True, populate_existing=True)
    former = model.storage_prefix
    for fact, value in facts.items():
        setattr(model, fact, value)
    model.deleted_at, model.created_at = None, session.scalars(select(dpo_now())).one()
    session.flush()
    models.note_if_nameless(session, former)
    return model
