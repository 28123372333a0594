"""Which checkpoints a job keeps, and that none goes before a newer one is there, or while something needs it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import select

from control_plane import jobs, models, publication, results
from control_plane.database import Database
from control_plane.errors import InvalidRequest
from control_plane.job_requests import read_request, training_spec
from control_plane.leases import Claim
from control_plane.storage import checkpoint_prefix
from control_plane.tables import Attempt, Checkpoint, Job, Model
from dpo_core.best import Best
from dpo_core.disk import STATES_KEPT
from tests.control_plane.rows import PROJECT, body, create, event_codes, noted, started
from tests.control_plane.test_results import manifest


def publish(database: Database, claim: Claim, step: int, *, best: int | None = None, final: bool = False) -> None:
    """As a worker does it: files, then the fenced row, then what is old."""
    found = Best(step=best, metric="loss", value=0.5) if best is not None else None
    with database.transaction() as session:
        made = manifest(step, final=final, best=found)
        publication.publish_checkpoint(session, claim, made, checkpoint_prefix(claim.job_id, claim.fence, step))
    with database.transaction() as session:
        publication.forget_old(session, claim, states=STATES_KEPT)


def steps(database: Database, claim: Claim) -> list[int]:
    """Of the checkpoints that there are, each with its model."""
    with database.transaction() as session:
        rows = session.execute(
            select(Checkpoint.step, Model.deleted_at)
            .join(Model, Model.id == Checkpoint.model_id)
            .where(Checkpoint.job_id == claim.job_id)
            .order_by(Checkpoint.step)
        ).all()
        there = select(Model.step).where(Model.job_id == claim.job_id, Model.deleted_at.is_(None)).distinct()
        assert sorted(step for step, _ in rows) == sorted(session.scalars(there))
    assert all(deleted is None for _, deleted in rows)
    return [step for step, _ in rows]


def validated(database: Database, claim: Claim, losses: dict[int, float]) -> None:
    lines = [{"split": "validation", "step": step, "values": {"loss": loss}} for step, loss in losses.items()]
    with database.transaction() as session:
        results.record(session, claim, metrics=lines)


def job_with(database: Database, **training: Any) -> Claim:
    return started(database, training=training)


def publish_all(database: Database, claim: Claim, made: Iterable[int]) -> None:
    for step in made:
        publish(database, claim, step)


def test_ten_are_kept_unless_the_spec_says_otherwise(stocked: Database) -> None:
    claim = job_with(stocked)
    publish_all(stocked, claim, range(1, 11))
    assert steps(stocked, claim) == list(range(1, 11))
    publish(stocked, claim, 11)
    assert steps(stocked, claim) == list(range(2, 12))
    with stocked.transaction() as session:
        assert checkpoint_prefix(claim.job_id, claim.fence, 1) in noted(session)
        (told,) = [
            it for it in jobs.list_events(session, PROJECT, claim.job_id).items if it.code == "checkpoint_deleted"
        ]
        name = session.get_one(Job, claim.job_id).result_name
    assert (told.code, told.data) == ("checkpoint_deleted", {"step": 1, "model": f"{name}-step-1"})
    assert "`training.keep_last` 10" in told.message


def test_what_the_run_may_go_on_from_stays_until_it_is_over(stocked: Database) -> None:
    claim = job_with(stocked, keep_last=1)
    publish_all(stocked, claim, (2, 4, 6))
    assert steps(stocked, claim) == [4, 6], "the one before the newest, should that be damaged"
    publish(stocked, claim, 7, final=True)
    assert steps(stocked, claim) == [6, 7]
    with stocked.transaction() as session:
        results.succeed(session, claim)
    assert steps(stocked, claim) == [7]
    assert event_codes(stocked, claim.job_id)[-1] == "checkpoint_deleted"


def test_the_best_stays_with_its_name(stocked: Database) -> None:
    claim = job_with(stocked, keep_last=1)
    publish(stocked, claim, 2, best=2)
    for step in (4, 6, 8):
        publish(stocked, claim, step, best=2)
    assert steps(stocked, claim) == [2, 6, 8]
    publish(stocked, claim, 10, best=10)
    assert steps(stocked, claim) == [2, 8, 10], "should 10 be damaged, one that goes on from 8 takes 2 for the best"
    publish(stocked, claim, 12, best=10)
    assert steps(stocked, claim) == [10, 12], "it is not the best any more, whatever is gone on from"
    with stocked.transaction() as session:
        assert checkpoint_prefix(claim.job_id, claim.fence, 2) in noted(session)


def test_several_best_by_what_was_measured(stocked: Database) -> None:
    claim = job_with(stocked, keep_last=1, keep_best=3)
    validated(stocked, claim, {0: 0.1, 2: 0.3, 4: 0.2, 6: 0.4, 8: 0.25})
    publish_all(stocked, claim, (2, 4, 6, 8, 10, 12, 14))
    assert steps(stocked, claim) == [2, 4, 8, 12, 14], "step 0 made no checkpoint, and 10 to 14 were not measured"


@pytest.mark.parametrize("use", ["start", "reference"])
def test_one_that_another_job_uses_stays(stocked: Database, use: str) -> None:
    claim = job_with(stocked, keep_last=1)
    publish_all(stocked, claim, (2, 4))
    with stocked.transaction() as session:
        name = f"{session.get_one(Job, claim.job_id).result_name}-step-2"
        changes = {"model": name} if use == "start" else {"training": {"reference": name}}
        other = create(session, **changes).id
    publish_all(stocked, claim, (6, 8))
    assert steps(stocked, claim) == [2, 6, 8]
    with stocked.transaction() as session:
        jobs.cancel(session, PROJECT, other)
    publish(stocked, claim, 10)
    assert steps(stocked, claim) == [8, 10]


def test_one_that_has_another_name_keeps_its_bytes(stocked: Database) -> None:
    """As a promoted model of a sweep has."""
    claim = job_with(stocked, keep_last=1)
    prefix = checkpoint_prefix(claim.job_id, claim.fence, 2)
    publish(stocked, claim, 2)
    with stocked.transaction() as session:
        named = {"kind": "checkpoint", "form": "full", "step": 2, "job_id": "ftjob-other"}
        session.add(Model(id="default/mine", project_id=PROJECT, storage_prefix=prefix, **named))
    publish_all(stocked, claim, (4, 6))
    assert steps(stocked, claim) == [4, 6]
    with stocked.transaction() as session:
        assert prefix not in noted(session)
        models.delete(session, PROJECT, "default/mine")
        assert prefix in noted(session)


def test_one_that_somebody_is_about_to_use_is_left_until_the_next(stocked: Database) -> None:
    """A request that holds the model waits for nobody, and nobody for it."""
    claim = job_with(stocked, keep_last=1)
    publish_all(stocked, claim, (2, 4))
    with stocked.transaction() as session:
        models.hold(session, PROJECT, f"{session.get_one(Job, claim.job_id).result_name}-step-2")
        publish(stocked, claim, 6)
        assert steps(stocked, claim) == [2, 4, 6]
    publish(stocked, claim, 8)
    assert steps(stocked, claim) == [6, 8]


def test_a_step_that_was_not_kept_is_no_progress_when_it_is_made_again(stocked: Database) -> None:
    """Else a run that begins again and again would never count as fruitless."""
    claim = job_with(stocked, keep_last=1)
    publish_all(stocked, claim, (2, 4, 6))
    with stocked.transaction() as session:
        for checkpoint in session.scalars(select(Checkpoint)):
            checkpoint.state_kept = False
        results.hand_back(session, claim)
    again = started(stocked)  # the newer job waits: the same one is claimed
    assert again.job_id == claim.job_id
    publish(stocked, again, 2)
    assert 2 in steps(stocked, again), "it is what the run goes on from"
    with stocked.transaction() as session:
        assert not session.get_one(Attempt, (again.job_id, again.fence)).made_progress


def test_nonsense_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="keep_last"):
        training_spec(read_request(body(training={"keep_last": 0})))
