"""Sweeps to start from, and what their jobs report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from control_plane import leases, publication, reference_cache, results, sweeps
from control_plane.database import Database
from control_plane.leases import Claim
from control_plane.sweep_requests import read_sweep
from control_plane.tables import Job, Json
from dpo_core.best import Best
from dpo_core.run_directory import Manifest
from tests.control_plane.rows import PROJECT, body

GROUP = "group-1"
DPO = {"type": "dpo"}
RATES = [1e-6, 3e-6, 1e-5]


def make_sweep(database: Database, method: Json = DPO, **training: Any) -> tuple[str, list[str]]:
    """A new sweep's id and its jobs' ids; over three learning rates unless `training` says otherwise."""
    with database.transaction() as session:
        request = read_sweep(body(method=method, training=training or {"learning_rate": RATES}))
        sweep = sweeps.create(session, PROJECT, request)
        return sweep.id, [job.id for job in sweeps.jobs_of(session, sweep)]


def claim(database: Database, *kinds: leases.Kind) -> Claim | None:
    with database.transaction() as session:
        return leases.claim(
            session, worker_id="w1", free=8, total=8, lease_seconds=30, kinds=kinds or ("validate", "train")
        )


def claimed(database: Database, *kinds: leases.Kind) -> Claim:
    found = claim(database, *kinds)
    assert found is not None
    return found


def validate(database: Database, *groups: str | None, held_out: Sequence[int] = ()) -> None:
    """Validates as many jobs as there are groups of references; `held_out` says how many rows of each are."""
    for group, rows in zip_longest(groups, held_out):
        taken = claimed(database, "validate")
        report = {} if rows is None else {"report": {"validation_items": rows, "pairs": 10 * rows}}
        with database.transaction() as session:
            results.finish_validation(session, taken, {"reference_group": group, "total_steps": 10, **report})


def measure_reference(database: Database, claim: Claim) -> None:
    assert claim.kind == "train"
    with database.transaction() as session:
        reference_cache.complete(session, claim)


def read(database: Database, job_id: str) -> Job:
    with database.transaction() as session:
        return session.get_one(Job, job_id)


def evaluate(database: Database, claim: Claim, step: int, accuracy: float, *, wide: float = 0.05) -> None:
    values = {
        "loss": 1 - accuracy,
        "rewards/accuracies": accuracy,
        "rewards/accuracies/low": accuracy - wide,
        "rewards/accuracies/high": accuracy + wide,
    }
    with database.transaction() as session:
        results.record(session, claim, metrics=[{"split": "validation", "step": step, "values": values}])


def publish(database: Database, claim: Claim, step: int, *, final: bool, best: int | None = None) -> None:
    """A checkpoint; `best`: the step of the best one so far."""
    judged = None if best is None else Best(step=best, metric="loss", value=0.5)
    manifest = Manifest(step=step, kind="full", files=[], final=final, best=judged)
    with database.transaction() as session:
        publication.publish_checkpoint(session, claim, manifest, f"bytes/{claim.job_id}/{step}")


def succeed(database: Database, claim: Claim) -> None:
    with database.transaction() as session:
        results.succeed(session, claim)


def run_all(database: Database, accuracies: list[float], held_out: Sequence[int] = ()) -> None:
    """Validates and trains all jobs, in order, to these accuracies at step 5, where each is at its best."""
    validate(database, *[GROUP] * len(accuracies), held_out=held_out)
    for accuracy in accuracies:
        taken = claimed(database)
        measure_reference(database, taken)
        evaluate(database, taken, 0, 0.5)
        evaluate(database, taken, 5, accuracy)
        publish(database, taken, 5, final=False, best=5)
        evaluate(database, taken, 10, 0.6)
        publish(database, taken, 10, final=True, best=5)
        succeed(database, taken)
