"""How a checkpoint that lies in storage becomes models that users see, and how old ones go again.

As in control_plane/results.py each function takes the job's row lock and compares the claim's fence: StaleFence means
that nothing was changed.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import attempts, events, leases, models, removals, retention
from control_plane.ids import new_id
from control_plane.leases import Claim
from control_plane.model_files import list_checkpoint, set_files
from control_plane.result_names import best_name
from control_plane.tables import Attempt, Checkpoint, Job, Json, Model
from dpo_core.run_directory import Manifest


def publish_checkpoint(session: Session, claim: Claim, manifest: Manifest, storage_prefix: str) -> Model:
    """Makes a checkpoint in storage known as the model `{result_name}-step-N`; the final one as `{result_name}` too.

    Its files lie at `{storage_prefix}/{path}`, with the manifest's paths (`model/…`). Published again by
    a later attempt, the same step's rows point to the later files. The best one so far is `{result_name}-best` as well.
    An attempt that publishes a step again, because the answer to its first commit was lost, changes nothing.
    """
    job = leases.held(session, claim)
    if (published := _published(session, claim, manifest.step)) is not None:
        return session.get_one(Model, published.model_id)
    name = f"{job.result_name}-step-{manifest.step}"
    if session.get(Model, name) is None:  # one that was made before, and not kept, is no progress
        session.get_one(Attempt, (job.id, job.fence)).made_progress = True
        job.fruitless_attempts = 0
    model = _put_model(session, job, name, manifest, step=manifest.step, storage_prefix=storage_prefix)
    if manifest.final:
        _put_model(session, job, job.result_name, manifest, step=manifest.step, storage_prefix=storage_prefix)
    session.flush()
    known = select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step == manifest.step)
    checkpoint = session.scalars(known).one_or_none()
    if checkpoint is None:
        checkpoint = Checkpoint(id=new_id("ftckpt"), project_id=job.project_id, job_id=job.id, step=manifest.step)
        session.add(checkpoint)
    elif checkpoint.storage_prefix != storage_prefix:
        removals.note(session, checkpoint.storage_prefix)
        removals.note_state(session, checkpoint)
    checkpoint.model_id = model.id
    checkpoint.fence = job.fence
    checkpoint.storage_prefix = storage_prefix
    checkpoint.manifest = manifest.model_dump(mode="json")
    checkpoint.state_kept = True
    session.flush()
    _name_best(session, job, manifest)
    job.trained_tokens = manifest.trained_tokens
    _tell_of_checkpoint(session, job, manifest, model)
    return model


def forget_old(session: Session, claim: Claim, *, states: int) -> None:
    """Notes the removal of the state to resume from of all but the newest `states` checkpoints, and then of the models
    that the job's spec does not keep."""
    job = leases.held(session, claim)
    for checkpoint in session.scalars(attempts.resumable(job).offset(states)):
        removals.note_state(session, checkpoint)
    session.flush()
    retention.retire(session, job)


def _published(session: Session, claim: Claim, step: int) -> Checkpoint | None:
    """The checkpoint of that step, if this attempt has published it, and no later one since."""
    mine = (Checkpoint.job_id == claim.job_id) & (Checkpoint.fence == claim.fence)
    return session.scalars(select(Checkpoint).where(mine, Checkpoint.step == step)).one_or_none()


def _name_best(session: Session, job: Job, manifest: Manifest) -> None:
    """Gives the name `{result_name}-best` to the checkpoint that `manifest` calls the best, its own or an earlier one.

    Every publication does so. Were it only the best's own, an attempt that measures a little differently could
    leave the name with files of an earlier attempt, which are removed when their step is published again.
    """
    if manifest.best is None:
        return
    step = manifest.best.step
    best = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step == step)).one()
    its_own = Manifest.model_validate(best.manifest)
    _put_model(session, job, best_name(job.result_name), its_own, step=step, storage_prefix=best.storage_prefix)
    job.best = manifest.best.model_dump()


def _tell_of_checkpoint(session: Session, job: Job, manifest: Manifest, model: Model) -> None:
    best = manifest.best if manifest.best is not None and manifest.best.step == manifest.step else None
    message = f"Checkpoint created at step {manifest.step}: {model.id}"
    if best is not None:
        message += f", the best so far (validation {best.metric} {best.value:.6g})"
    data: Json = {"step": manifest.step, "model": model.id, "final": manifest.final, "best": best is not None}
    events.add(session, job, code="checkpoint_created", message=message, data=data)


def _put_model(
    session: Session, job: Job, model_id: str, manifest: Manifest, *, step: int, storage_prefix: str
) -> Model:
    start = session.get_one(Model, job.model_id)
    model = session.get(Model, model_id)
    if model is None:
        model = Model(id=model_id, project_id=job.project_id, kind="checkpoint", job_id=job.id)
        model.facts = models.inherited_facts(start)
        session.add(model)
    elif model.storage_prefix != storage_prefix:
        models.outdate_merged(session, model_id)
    model.form, model.deleted_at = manifest.kind, None
    model.base_id = (start.base_id or start.id) if manifest.kind == "adapter" else None
    model.storage_prefix = storage_prefix
    model.bytes = sum(file.bytes for file in manifest.files if file.path.startswith("model/"))
    model.step = step
    set_files(model, list_checkpoint(manifest))
    return model
