"""From a check's work order to its spec.json: every file brought into its run directory under `input/`."""

from __future__ import annotations

from control_plane.checks import WorkOrder
from control_plane.storage import Storage
from dpo_core.questions import CheckSpec, FileQuestion
from dpo_core.run_directory import RunDirectory
from worker.inputs import fetch_file


def collect(storage: Storage, order: WorkOrder, run: RunDirectory) -> CheckSpec:
    """Fetches what the question is about and says where it lies. Base models are used in place.

    Raises:
        OSError: a file is not in storage, or the disk is full.
    """
    asked, inputs = order.check.question, run.path / "input"
    return CheckSpec(question=FileQuestion(file=fetch_file(storage, order.files[asked["file"]], inputs / "file")))
