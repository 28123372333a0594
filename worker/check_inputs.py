"""From a check's work order to its spec.json: every file brought into its run directory under `input/`."""

from __future__ import annotations

from pathlib import Path

from control_plane.checks import WorkOrder
from control_plane.storage import Storage
from control_plane.tables import Check
from dpo_core.questions import CheckSpec, EstimateQuestion, FileQuestion, PreviewQuestion, Question, TokenQuestion
from dpo_core.run_directory import RunDirectory
from dpo_core.spec import Device, ModelSource, RunSpec, TrainingSpec, WeighedFile
from worker.inputs import day_of, fetch_file, fetch_model


def collect(storage: Storage, order: WorkOrder, run: RunDirectory, device: Device) -> CheckSpec:
    """Fetches what the question is about and says where it lies. Base models are used in place.

    Raises:
        OSError: a file or model is not in storage, a base model's folder not on this host, or the disk is full.
    """
    inputs = _Inputs(storage, order, run.path / "input")
    return CheckSpec(question=_question(inputs, order.check, device))


def _question(inputs: _Inputs, check: Check, device: Device) -> Question:
    asked = check.question
    if check.kind == "estimate":
        return EstimateQuestion(run=_run(inputs, check, device))
    file, columns = inputs.file(asked["file"]), asked.get("columns", {})
    if check.kind in ("file", "file_columns"):
        return FileQuestion(file=file, columns=columns)
    model = inputs.model(asked["model"])
    if check.kind == "model_file":
        return TokenQuestion(file=file, columns=columns, model=model, today=day_of(check.created_at))
    shown = {name: asked[name] for name in ("limit", "lines", "max_length", "today")}
    return PreviewQuestion(file=file, columns=columns, model=model, **shown)


class _Inputs:
    """Fetches by id, into folders that are numbered: an id of a model is no file's name."""

    def __init__(self, storage: Storage, order: WorkOrder, folder: Path) -> None:
        self._storage, self._order, self._folder = storage, order, folder
        self._names = {name: str(number) for number, name in enumerate(order.check.about)}

    def file(self, file_id: str) -> Path:
        return fetch_file(self._storage, self._order.files[file_id], self._folder / self._names[file_id])

    def model(self, model_id: str) -> ModelSource:
        model = self._order.models[model_id]
        base = self._order.models[model.base_id] if model.base_id else None
        return fetch_model(self._storage, model, base, self._folder / self._names[model_id])


def _run(inputs: _Inputs, check: Check, device: Device) -> RunSpec:
    asked = check.question
    validation, reference = asked["validation_file"], asked["reference"]
    return RunSpec(
        job_id=check.id,
        training=TrainingSpec.model_validate(asked["training"]),
        model=inputs.model(asked["model"]),
        reference=inputs.model(reference) if reference else None,
        training_file=inputs.file(asked["training_file"]),
        training_files=[
            WeighedFile(path=inputs.file(file["id"]), **file) for file in asked.get("training_files") or ()
        ],
        validation_file=inputs.file(validation) if validation else None,
        today=day_of(check.created_at),
        ranks=asked["gpus"],
        device=device,
    )
