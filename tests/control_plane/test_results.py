"""What a worker reports; and that a report under a stale fence changes nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Table, select
from sqlalchemy.orm import Session

from control_plane import jobs, leases, models, publication, results
from control_plane.database import Database
from control_plane.errors import Conflict, StaleFence
from control_plane.job_states import State, move
from control_plane.leases import Claim
from control_plane.progress import estimated_finish
from control_plane.tables import Attempt, Base, Job, Model
from dpo_core.best import Best
from dpo_core.errors import reader_killed
from dpo_core.run_directory import CHECKPOINT_CORRUPT, CHECKPOINT_UNREADABLE, Failure, Manifest
from dpo_core.spec import LoraSpec, TrainingSpec
from dpo_core.takes_less import IN_GENERAL
from tests.control_plane.rows import (
    MODEL,
    PROJECT,
    add_file,
    add_model,
    claim_one,
    create,
    event_codes,
    noted,
    read_job,
    set_clock_ahead,
    started,
)


def metric(step: int, loss: float, split: str = "train") -> dict[str, Any]:
    return {"split": split, "step": step, "time": 0.0, "values": {"loss": loss}}


def manifest(step: int, *, final: bool = False, kind: str = "full", best: Best | None = None) -> Manifest:
    return Manifest.model_validate(
        {
            "step": step,
            "kind": kind,
            "files": [{"path": "model/config.json", "bytes": 2, "sha256": "ab"}],
            "metrics": {"loss": 0.5},
            "trained_tokens": 7 * step,
            "final": final,
            "best": best,
        }
    )


def failure(kind: str) -> Failure:
    return Failure.model_validate({"kind": kind, "code": "broken", "message": "It broke; mend it.", "line": 3})


REPORTS: dict[str, Callable[[Session, Claim], object]] = {
    "work_order": results.work_order,
    "record": lambda session, claim: results.record(
        session, claim, metrics=[metric(1, 0.1)], events=[({"code": "c", "message": "m"}, 9)], step=1, total_steps=2
    ),
    "publish_checkpoint": lambda session, claim: publication.publish_checkpoint(session, claim, manifest(4), "prefix"),
    "forget_old": lambda session, claim: publication.forget_old(session, claim, states=0),
    "finish_validation": lambda session, claim: results.finish_validation(session, claim, {"pairs": 3}),
    "succeed": results.succeed,
    "hand_back": results.hand_back,
    "fail user": lambda session, claim: results.fail(session, claim, failure("user"), max_attempts=3),
    "fail infrastructure": lambda session, claim: results.fail(
        session, claim, failure("infrastructure"), max_attempts=3
    ),
    "renew": leases.renew,
}


def everything(database: Database) -> dict[str, list[Any]]:
    with database.transaction() as session:
        tables: list[Table] = Base.metadata.sorted_tables
        return {table.name: sorted(map(repr, session.execute(select(table)))) for table in tables}


def cancelled(database: Database, claim: Claim) -> None:
    with database.transaction() as session:
        jobs.cancel(session, PROJECT, claim.job_id)


def lost(database: Database, claim: Claim) -> None:
    with database.transaction() as session:
        set_clock_ahead(session, 31)
        leases.reconcile(session, max_attempts=3)


def claimed_by_another(database: Database, claim: Claim) -> None:
    lost(database, claim)
    assert claim_one(database, worker_id="w2").fence == claim.fence + 1


def ended(database: Database, claim: Claim) -> None:
    with database.transaction() as session:
        results.hand_back(session, claim)


@pytest.mark.parametrize("overtaken", [cancelled, lost, claimed_by_another, ended])
def test_a_stale_fence_changes_nothing(stocked: Database, overtaken: Callable[[Database, Claim], None]) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        publication.publish_checkpoint(session, claim, manifest(2, final=True), "earlier")
    overtaken(stocked, claim)
    before = everything(stocked)
    for report in REPORTS.values():
        with pytest.raises(StaleFence), stocked.transaction() as session:
            report(session, claim)
        # Even in a transaction that goes on in spite of it.
        with stocked.transaction() as session, pytest.raises(StaleFence):
            report(session, claim)
    assert everything(stocked) == before


def test_every_report_is_in_the_stale_test() -> None:
    public = {
        name
        for module in (results, publication)
        for name, item in vars(module).items()
        if callable(item)
        and getattr(item, "__module__", "") == module.__name__
        and name[0].islower()
        and name[0] != "_"
    }
    assert public == {name.split()[0] for name in REPORTS} - {"renew"}


def test_recording_twice_replaces_and_keeps_each_event_once_in_order(stocked: Database) -> None:
    """The answer to the first call may have been lost after its commit."""
    claim = started(stocked)
    said = [
        ({"level": "warn", "code": f"e{number}", "message": str(number), "data": {"n": number}}, 9 * number + 9)
        for number in range(5)
    ]
    with stocked.transaction() as session:
        results.record(session, claim, metrics=[metric(1, 0.7), metric(2, 0.6), metric(2, 0.65)], events=said[:3])
    newer = [metric(2, 0.5), metric(2, 0.9, "validation")]
    with stocked.transaction() as session:
        results.record(session, claim, metrics=newer, events=said, step=2, total_steps=4)
    with stocked.transaction() as session:
        found = [(row.split, row.step, row.values["loss"]) for row in jobs.list_metrics(session, PROJECT, claim.job_id)]
        later = jobs.list_metrics(session, PROJECT, claim.job_id, split="train", after_step=1)
    assert found == [("train", 1, 0.7), ("train", 2, 0.5), ("validation", 2, 0.9)]
    assert [row.step for row in later] == [2]
    assert event_codes(stocked, claim.job_id)[-5:] == ["e0", "e1", "e2", "e3", "e4"]
    progress = read_job(stocked, claim.job_id).progress
    assert (progress["step"], progress["total_steps"]) == (2, 4)


def test_a_resumed_attempt_overwrites_what_it_measures_again(stocked: Database) -> None:
    first = started(stocked)
    with stocked.transaction() as session:
        results.record(session, first, metrics=[metric(step, 0.7) for step in range(4)])
        results.hand_back(session, first)
    second = claim_one(stocked)
    with stocked.transaction() as session:
        results.record(session, second, metrics=[metric(2, 0.1)])
        rows = jobs.list_metrics(session, PROJECT, second.job_id)
        assert [(row.step, row.values["loss"], row.fence) for row in rows] == [
            (0, 0.7, 1),
            (1, 0.7, 1),
            (2, 0.1, 2),
            (3, 0.7, 1),
        ]


def test_the_finish_is_estimated_from_the_attempts_own_speed(stocked: Database) -> None:
    claim = started(stocked)
    for step, seconds in [(10, 0), (20, 100)]:
        with stocked.transaction() as session:
            set_clock_ahead(session, seconds)
            results.record(session, claim, step=step, total_steps=50)
        if step == 10:
            assert estimated_finish(read_job(stocked, claim.job_id)) is None
    job = read_job(stocked, claim.job_id)
    finish = estimated_finish(job)
    assert finish is not None and job.started_at is not None
    assert 400 <= (finish - job.started_at).total_seconds() < 410
    with stocked.transaction() as session:
        results.hand_back(session, claim)
    assert estimated_finish(read_job(stocked, claim.job_id)) is None


def test_checkpoints_become_models(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        model = publication.publish_checkpoint(session, claim, manifest(3), "checkpoints/a")
        publication.publish_checkpoint(session, claim, manifest(6, final=True), "checkpoints/b")
    job = read_job(stocked, claim.job_id)
    assert model.id == f"{job.result_name}-step-3"
    assert job.trained_tokens == 42
    with stocked.transaction() as session:
        final, last = session.get_one(Model, job.result_name), session.get_one(Model, f"{job.result_name}-step-6")
        page = jobs.list_checkpoints(session, PROJECT, job.id)
    for found, step, prefix in [(model, 3, "checkpoints/a"), (final, 6, "checkpoints/b"), (last, 6, "checkpoints/b")]:
        assert (found.project_id, found.kind, found.form, found.base_id) == (PROJECT, "checkpoint", "full", None)
        assert (found.job_id, found.step, found.storage_prefix, found.facts) == (job.id, step, prefix, {"layers": 2})
    assert [(row.step, row.model_id, row.manifest["metrics"]) for row in page.items] == [
        (6, last.id, {"loss": 0.5}),
        (3, model.id, {"loss": 0.5}),
    ]
    assert event_codes(stocked, job.id)[-2:] == ["checkpoint_created", "checkpoint_created"]


def test_a_later_attempt_publishes_the_same_step_again(stocked: Database) -> None:
    first = started(stocked)
    with stocked.transaction() as session:
        publication.publish_checkpoint(session, first, manifest(3), "old")
        results.hand_back(session, first)
    second = claim_one(stocked)
    with stocked.transaction() as session:
        model = publication.publish_checkpoint(session, second, manifest(3), "new")
        page = jobs.list_checkpoints(session, PROJECT, second.job_id)
        assert [(row.fence, row.storage_prefix) for row in page.items] == [(2, "new")]
        assert model.storage_prefix == "new"
        assert noted(session) == ["old", f"private/{second.job_id}/1/step-3"]
        assert not session.get_one(Attempt, (second.job_id, second.fence)).made_progress


def test_the_best_checkpoint_has_a_name_of_its_own(stocked: Database) -> None:
    claim = started(stocked)
    first = Best(step=3, metric="loss", value=0.625)
    with stocked.transaction() as session:
        publication.publish_checkpoint(session, claim, manifest(3, best=first), "p3")
        publication.publish_checkpoint(session, claim, manifest(6, best=first), "p6")
    job = read_job(stocked, claim.job_id)
    with stocked.transaction() as session:
        best = models.get(session, PROJECT, f"{job.result_name}-best")
        messages = [event.message for event in jobs.list_events(session, PROJECT, job.id).items]
        started_from_it = create(session, model=best.id)
    assert (best.step, best.storage_prefix, best.job_id) == (3, "p3", job.id)
    assert job.best == {"step": 3, "metric": "loss", "value": 0.625}
    assert messages[:2] == [
        f"Checkpoint created at step 6: {job.result_name}-step-6",
        f"Checkpoint created at step 3: {job.result_name}-step-3, the best so far (validation loss 0.625)",
    ]
    assert started_from_it.model_id == best.id
    with stocked.transaction() as session:
        better = Best(step=9, metric="loss", value=0.5)
        publication.publish_checkpoint(session, claim, manifest(9, final=True, best=better), "p9")
        assert models.get(session, PROJECT, best.id).storage_prefix == "p9"


def test_the_best_never_points_to_files_that_were_replaced(stocked: Database) -> None:
    """Another attempt may measure a little differently, on another GPU: then another step is the best."""
    first = started(stocked)
    with stocked.transaction() as session:
        publication.publish_checkpoint(session, first, manifest(3, best=Best(step=3, metric="loss", value=0.6)), "old3")
        publication.publish_checkpoint(session, first, manifest(6, best=Best(step=6, metric="loss", value=0.5)), "old6")
        results.hand_back(session, first)
    second = claim_one(stocked)
    with stocked.transaction() as session:
        seen = Best(step=3, metric="loss", value=0.6)
        publication.publish_checkpoint(session, second, manifest(6, final=True, best=seen), "new6")
        results.succeed(session, second)
        assert "old6" in noted(session)
    job = read_job(stocked, second.job_id)
    with stocked.transaction() as session:
        best = models.get(session, PROJECT, f"{job.result_name}-best")
        assert (best.step, best.storage_prefix) == (3, "old3")
        models.delete(session, PROJECT, f"{job.result_name}-step-3")
        assert "old3" not in noted(session), "the best is these bytes' other name"
        models.delete(session, PROJECT, best.id)
        assert "old3" in noted(session)


def test_only_the_newest_states_are_kept(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        for step in (1, 2, 3):
            publication.publish_checkpoint(session, claim, manifest(step), f"p{step}")
        publication.forget_old(session, claim, states=1)
        page = jobs.list_checkpoints(session, PROJECT, claim.job_id)
        assert [(row.step, row.state_kept) for row in page.items] == [(3, True), (2, False), (1, False)]
        assert noted(session) == [f"private/{claim.job_id}/1/step-{step}" for step in (1, 2)]
        results.fail(session, claim, Failure(kind="user", code="x", message="x"), max_attempts=3)
        assert f"private/{claim.job_id}/1/step-3" in noted(session), "nobody resumes a job that is over"


def test_a_damaged_state_is_gone_round_by_the_checkpoint_before(stocked: Database) -> None:
    claim = started(stocked)
    for expected in (1, None):
        with stocked.transaction() as session:
            if expected:
                publication.publish_checkpoint(session, claim, manifest(1), "p1")
                publication.publish_checkpoint(session, claim, manifest(2), "p2")
            damaged = Failure(kind="infrastructure", code=CHECKPOINT_CORRUPT, message="It differs.")
            results.fail(session, claim, damaged, max_attempts=3)
        claim = claim_one(stocked)
        with stocked.transaction() as session:
            checkpoint = results.work_order(session, claim).checkpoint
            assert (checkpoint.step if checkpoint else None) == expected
    with stocked.transaction() as session:
        page = jobs.list_checkpoints(session, PROJECT, claim.job_id)
        assert [(row.step, row.state_kept) for row in page.items] == [(2, False), (1, False)], "as models they stay"


def test_a_state_that_could_not_be_read_stays_and_counts_for_nothing(stocked: Database) -> None:
    claim = started(stocked)
    for _ in range(2):
        with stocked.transaction() as session:
            if claim.fence == 1:
                publication.publish_checkpoint(session, claim, manifest(1), "p1")
            late = Failure(kind="infrastructure", code=CHECKPOINT_UNREADABLE, message="step-1 can't be read: EIO.")
            results.fail(session, claim, late, max_attempts=1)
        claim = claim_one(stocked)
        with stocked.transaction() as session:
            checkpoint = results.work_order(session, claim).checkpoint
            assert checkpoint is not None and checkpoint.step == 1
            assert jobs.get(session, PROJECT, claim.job_id).fruitless_attempts == 0


def test_an_adapter_names_its_full_model(stocked: Database) -> None:
    first = started(stocked)
    with stocked.transaction() as session:
        model = publication.publish_checkpoint(session, first, manifest(1, kind="adapter"), "a")
        assert (model.form, model.base_id) == ("adapter", MODEL)
        results.hand_back(session, first)
        jobs.cancel(session, PROJECT, first.job_id)
    second = started(stocked, model=model.id)
    with stocked.transaction() as session:
        order = results.work_order(session, second)
        assert order.start_base is not None
        assert (order.start.id, order.start_base.id) == (model.id, MODEL)
        adapter = publication.publish_checkpoint(session, second, manifest(1, kind="adapter"), "b")
        full = publication.publish_checkpoint(session, second, manifest(2), "c")
        assert (adapter.base_id, full.base_id) == (MODEL, None)


def test_the_work_order_holds_all_that_a_worker_needs(stocked: Database) -> None:
    with stocked.transaction() as session:
        add_file(session, "file-2")
        add_model(session, "base/other")
    claim = started(stocked, validation_file="file-2", training={"reference": "base/other"})
    with stocked.transaction() as session:
        order = results.work_order(session, claim)
        assert order.checkpoint is None
        for step in (10, 2):
            publication.publish_checkpoint(session, claim, manifest(step), f"p{step}")
        order = results.work_order(session, claim)
    assert order.job.training["reference"] == "base/other"
    assert ([file.id for file in order.training_files], order.validation_file and order.validation_file.id) == (
        ["file-1"],
        "file-2",
    )
    assert (order.start.id, order.start_base) == (MODEL, None)
    assert (order.reference and order.reference.id, order.reference_base) == ("base/other", None)
    assert order.checkpoint is not None and order.checkpoint.step == 10


def test_from_validation_to_success(stocked: Database) -> None:
    with stocked.transaction() as session:
        job_id = create(session).id
    reader = claim_one(stocked)
    with stocked.transaction() as session:
        results.finish_validation(session, reader, {"pairs": 3})
    assert read_job(stocked, job_id).resolved == {"pairs": 3}
    trainer = claim_one(stocked)
    with pytest.raises(Conflict, match="final checkpoint"), stocked.transaction() as session:
        results.succeed(session, trainer)
    with stocked.transaction() as session:
        results.record(session, trainer, step=4, total_steps=5)
        publication.publish_checkpoint(session, trainer, manifest(5, final=True), "p")
        results.succeed(session, trainer)
        outcomes = [session.get_one(Attempt, (job_id, claim.fence)).outcome for claim in (reader, trainer)]
    job = read_job(stocked, job_id)
    assert (job.state, job.lease_until, outcomes) == ("succeeded", None, ["succeeded", "succeeded"])
    assert job.finished_at is not None
    assert (job.progress["step"], job.progress["total_steps"]) == (5, 5)
    assert (job.fence, job.training_attempts) == (2, 1)
    assert event_codes(stocked, job_id)[-4:] == [
        "files_validated",
        "job_started",
        "checkpoint_created",
        "job_succeeded",
    ]


def test_what_follows_a_lost_rank_is_told_in_one_sentence_and_the_log_stands_beside_it(stocked: Database) -> None:
    lost_rank = Failure(kind="infrastructure", code="rank_lost", message="Rank 1 was killed (SIGKILL).", log="a\nb")
    claim = started(stocked)
    with stocked.transaction() as session:
        results.fail(session, claim, lost_rank, max_attempts=3)
    claim = claim_one(stocked)
    with stocked.transaction() as session:
        publication.publish_checkpoint(session, claim, manifest(100), "p")
        results.fail(session, claim, lost_rank, max_attempts=3)
        newest = jobs.list_events(session, PROJECT, claim.job_id, limit=100).items
    told = [(event.message, event.data) for event in newest if event.code == "rank_lost"]
    data = {"kind": "infrastructure", "log": "a\nb"}
    assert told == [
        ("Rank 1 was killed (SIGKILL); the job goes on from step 100.", data),
        ("Rank 1 was killed (SIGKILL); the job begins again, as it has no checkpoint yet.", data),
    ]


@pytest.mark.parametrize("kind", ["user", "resource", "divergence"])
def test_a_failure_of_the_jobs_own_is_final(stocked: Database, kind: str) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        results.fail(session, claim, failure(kind), max_attempts=3)
    job = read_job(stocked, claim.job_id)
    assert (job.state, job.error) == ("failed", failure(kind).model_dump())
    assert event_codes(stocked, claim.job_id)[-1] == "broken"


def test_infrastructure_gets_another_attempt_until_too_many_were_fruitless(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        results.fail(session, claim, failure("infrastructure"), max_attempts=2)
    assert read_job(stocked, claim.job_id).state == "queued"
    claim = claim_one(stocked)
    with stocked.transaction() as session:
        results.fail(session, claim, failure("infrastructure"), max_attempts=2)
    assert read_job(stocked, claim.job_id).state == "failed"


def planned() -> dict[str, Any]:
    """What validation leaves of a plan whose stage 2 takes half of what stage 0 takes."""
    stages = [
        {"zero_stage": stage, "offload": "none", "activation_checkpointing": True, "micro_batch_tokens": 1, "host": 0}
        | {"rank": {"peak": peak * 2**30}, "fits": True, "chosen": stage == 0}
        for stage, peak in ((0, 8), (2, 4))
    ]
    training = TrainingSpec(activation_checkpointing=True, micro_batch_tokens=1, lora=LoraSpec())
    memory = {"device": "cuda", "ranks": 2, "rank": None, "stages": stages}
    return {"training": training.model_dump(mode="json"), "memory": memory}


@pytest.mark.parametrize(("code", "state"), [("out_of_memory", "failed"), ("host_out_of_memory", "queued")])
def test_out_of_memory_is_answered_with_what_takes_less(stocked: Database, code: str, state: str) -> None:
    """A GPU's memory is as small at the next attempt; the host's may have been somebody else's fault."""
    claim = started(stocked)
    with stocked.transaction() as session:
        session.get_one(Job, claim.job_id).resolved = planned()
    failed = Failure(kind="resource", code=code, message=f"Out of memory: 8 GiB. {IN_GENERAL}")
    with stocked.transaction() as session:
        results.fail(session, claim, failed, max_attempts=2)
    job = read_job(stocked, claim.job_id)
    assert job.state == state
    with stocked.transaction() as session:
        (told,) = [it for it in jobs.list_events(session, PROJECT, job.id).items if it.code == code]
    advice = "Out of memory: 8 GiB. What would take less: `zero_stage` 2, about 4 GiB a rank, where 8 GiB were planned"
    assert told.message.startswith(advice)


def test_a_reader_that_the_kernel_killed_is_an_attempt(stocked: Database) -> None:
    """What else used the memory may be gone."""
    claim = started(stocked)
    with stocked.transaction() as session:
        results.fail(session, claim, reader_killed().failure, max_attempts=2)
    job = read_job(stocked, claim.job_id)
    assert (job.state, job.fruitless_attempts) == ("queued", 1)


def test_handing_back_does_not_count_as_a_fruitless_attempt(stocked: Database) -> None:
    claim = started(stocked)
    ended(stocked, claim)
    job = read_job(stocked, claim.job_id)
    assert (job.state, job.fruitless_attempts, job.lease_until) == ("queued", 0, None)
    with stocked.transaction() as session:
        reader_job = create(session).id
    reader = leases_for(stocked, reader_job)
    ended(stocked, reader)
    assert read_job(stocked, reader_job).state == "validating"
    assert leases_for(stocked, reader_job).fence == 2


def leases_for(database: Database, job_id: str) -> Claim:
    with database.transaction() as session:
        claim = leases.claim(session, worker_id="w1", free=0, total=8, lease_seconds=30)
    assert claim is not None and claim.job_id == job_id
    return claim


@pytest.mark.parametrize("stop", [ended, lost])
def test_a_pausing_job_ends_paused(stocked: Database, stop: Callable[[Database, Claim], None]) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        job = jobs.get(session, PROJECT, claim.job_id)
        move(session, job, State.pausing, code="pausing", message="Pausing.")
    stop(stocked, claim)
    assert read_job(stocked, claim.job_id).state == "paused"


def test_text_that_postgresql_cannot_hold_is_reported_nevertheless(stocked: Database) -> None:
    claim = started(stocked)
    quoted = failure("user").model_copy(update={"message": "line 3: 'a\0b\ud800'"})
    with stocked.transaction() as session:
        said = {"code": "quote", "message": "\0", "data": {"text": ["\udfff"]}}
        results.record(session, claim, events=[(said, 1)])
        results.fail(session, claim, quoted, max_attempts=3)
    job = read_job(stocked, claim.job_id)
    assert job.error is not None
    assert job.error["message"] == "line 3: 'a\ufffdb\ufffd'"
    assert event_codes(stocked, claim.job_id)[-2:] == ["quote", "broken"]
