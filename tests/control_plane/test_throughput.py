"""How fast this installation trained before: only jobs that are alike count, and only the project's own."""

from __future__ import annotations

from typing import Any

from control_plane import results, throughput, workers
from control_plane.database import Database
from control_plane.leases import Claim
from control_plane.throughput import Throughput
from dpo_core.spec import LoraSpec, TrainingSpec
from tests.control_plane.rows import MODEL, PROJECT, started


def trained(database: Database, speeds: list[float], **request: Any) -> Claim:
    """A job that reports a speed for each of its steps."""
    with database.transaction() as session:
        workers.register(session, workers.Facts(id="w1", hostname="h", pid=1, device="cpu", slots=8))
    claim = started(database, **request)
    lines = [
        {"split": "train", "step": step, "values": {"tokens_per_second": speed}} for step, speed in enumerate(speeds)
    ]
    with database.transaction() as session:
        results.record(session, claim, metrics=lines)
    return claim


def measured(database: Database, **changes: Any) -> Throughput | None:
    asked: dict[str, Any] = {
        "project_id": PROJECT,
        "model_id": MODEL,
        "training": TrainingSpec(),
        "device": "cpu",
        "gpus": 1,
    }
    with database.transaction() as session:
        return throughput.measured(session, **{**asked, **changes})


def test_the_newest_job_that_is_alike_in_the_median_of_its_steps(stocked: Database) -> None:
    assert measured(stocked) is None
    older = trained(stocked, [1.0, 500.0, 700.0])
    assert measured(stocked) == Throughput(older.job_id, 600.0, 2)
    newer = trained(stocked, [1.0, 900.0, 100.0, 300.0])
    assert measured(stocked) == Throughput(newer.job_id, 300.0, 3)
    trained(stocked, [1.0, 900.0])
    found = measured(stocked)
    assert found is not None and found.job_id == newer.job_id, "one step says too little"


def test_what_is_not_alike_does_not_count(stocked: Database) -> None:
    trained(stocked, [1.0, 500.0, 700.0])
    for change in (
        {"model_id": "base/other"},
        {"project_id": "proj-2"},
        {"device": "cuda"},
        {"gpus": 2},
        {"training": TrainingSpec(lora=LoraSpec())},
        {"training": TrainingSpec(method="supervised")},
    ):
        assert measured(stocked, **change) is None, change
    adapter = trained(stocked, [1.0, 500.0, 700.0], training={"lora": {"rank": 4}})
    found = measured(stocked, training=TrainingSpec(lora=LoraSpec(rank=4)))
    assert found is not None and found.job_id == adapter.job_id
