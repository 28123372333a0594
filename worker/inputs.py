"""From a work order to spec.json: every file of an attempt brought into its run directory under `input/`."""

from __future__ import annotations

import errno
from datetime import UTC, date, datetime
from pathlib import Path

from control_plane.leases import Claim
from control_plane.results import WorkOrder
from control_plane.storage import Storage, state_prefix
from control_plane.tables import Checkpoint, File, Model
from dpo_core.failures import FULL
from dpo_core.run_directory import MANIFEST, Manifest, RunDirectory, write_whole
from dpo_core.spec import Device, ModelSource, RunSpec, TrainingSpec, WeighedFile
from dpo_core.verification import unreadable


def collect(
    storage: Storage, order: WorkOrder, claim: Claim, run: RunDirectory, device: Device, *, reference_cache: Path | None
) -> RunSpec:
    """Fetches what the attempt reads and says where it lies. Base models are used in place.

    Raises:
        OSError: a file is not in storage, a base model's folder not on this host, or the disk is full.
    """
    inputs = run.path / "input"
    model = fetch_model(storage, order.start, order.start_base, inputs / "model")
    reference = None
    if order.reference is not None:
        reference = fetch_model(storage, order.reference, order.reference_base, inputs / "reference")
    resume_from = None
    if claim.kind == "train" and order.checkpoint is not None:
        resume_from = _checkpoint(storage, order.checkpoint, inputs / "checkpoint")
    training = {file.id: fetch_file(storage, file, inputs / "training" / file.id) for file in order.training_files}
    return RunSpec(
        job_id=claim.job_id,
        fence=claim.fence,
        training=_training(order, claim),
        model=model,
        reference=reference,
        reference_cache=reference_cache,
        training_file=training[order.job.training_file_id],
        training_files=[WeighedFile(path=training[file["id"]], **file) for file in order.job.training_files or ()],
        validation_file=fetch_file(storage, order.validation_file, inputs / "validation.jsonl")
        if order.validation_file is not None
        else None,
        today=day_of(order.job.created_at),
        ranks=claim.gpus if claim.kind == "train" else max(1, order.job.gpus),
        device=device,
        resume_from=resume_from,
    )


def _training(order: WorkOrder, claim: Claim) -> TrainingSpec:
    """As asked for when it is to be validated; as validation resolved it when it is to be trained."""
    if claim.kind == "train" and order.job.resolved is not None:
        return TrainingSpec.model_validate(order.job.resolved["training"])
    return TrainingSpec.model_validate(order.job.training)


def day_of(moment: datetime) -> date:
    """The day of a moment, wherever the worker is."""
    return moment.astimezone(UTC).date()


def fetch_file(storage: Storage, file: File, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.fetch(file.storage_key, path)
    return path


def fetch_model(storage: Storage, model: Model, base: Model | None, folder: Path) -> ModelSource:
    path = _model(storage, model, folder)
    base_path = _model(storage, base, folder.with_name(f"{folder.name}-base")) if base is not None else None
    return ModelSource(id=model.id, path=path, base_path=base_path)


def _model(storage: Storage, model: Model, folder: Path) -> Path:
    if model.path is not None:
        if not (Path(model.path) / "config.json").exists():  # the worker's trouble and not the job's
            raise FileNotFoundError(f"the folder of {model.id} is not on this host, or has no config.json")
        return Path(model.path)
    _fetch_folder(storage, f"{model.storage_prefix}/model", folder)
    return folder


def _checkpoint(storage: Storage, checkpoint: Checkpoint, folder: Path) -> Path:
    """The checkpoint as its trainer wrote it. Its manifest comes from PostgreSQL, not from storage: the trainer
    compares the sha256 of every file with it before it reads anything, and so finds out what is not there, too.

    Raises:
        RunError: kind `infrastructure`; storage can't be linked to, and doesn't let it be read.
    """
    state = state_prefix(checkpoint.job_id, checkpoint.fence, checkpoint.step)
    try:
        _fetch_all(storage, f"{checkpoint.storage_prefix}/model", folder / "model")
        _fetch_all(storage, f"{state}/state", folder / "state")
    except OSError as error:
        if error.errno in (errno.ENOENT, *FULL):
            raise
        raise unreadable(folder, error) from error
    write_whole(folder / MANIFEST, Manifest.model_validate(checkpoint.manifest).model_dump_json())
    return folder


def _fetch_folder(storage: Storage, prefix: str, folder: Path) -> None:
    """Raises FileNotFoundError where storage has none of it."""
    if not _fetch_all(storage, prefix, folder):
        raise FileNotFoundError(f"storage has nothing below {prefix}; it was removed while a job still needed it")


def _fetch_all(storage: Storage, prefix: str, folder: Path) -> int:
    """Every object below `prefix`, under its own name below `folder`; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = list(storage.keys(prefix))
    for key in keys:
        target = folder / Path(key).relative_to(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.fetch(key, target)
    return len(keys)
