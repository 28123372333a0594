"""Sweeps against a real PostgreSQL: one request makes all jobs, which are then compared, cancelled and promoted."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import func, select

from control_plane import checks, jobs, models, sweeps
from control_plane.database import Database
from control_plane.errors import Conflict, InvalidRequest, NotFound
from control_plane.job_states import State
from control_plane.questions import Question
from control_plane.repetition import Repeatable
from control_plane.sweep_requests import read_sweep
from control_plane.sweep_results import Result, best_of, results
from control_plane.tables import Job, Model, Sweep
from tests.control_plane.rows import PROJECT, add_project, body, event_codes, noted
from tests.control_plane.sweeps import (
    GROUP,
    RATES,
    claimed,
    evaluate,
    make_sweep,
    publish,
    read,
    run_all,
    succeed,
    validate,
)


def table(database: Database, sweep_id: str) -> list[Result]:
    with database.transaction() as session:
        sweep = sweeps.get(session, PROJECT, sweep_id)
        return results(session, sweep, sweeps.jobs_of(session, sweep))


def promote(database: Database, sweep_id: str, job_id: str | None = None) -> Model:
    with database.transaction() as session:
        return sweeps.promote(session, PROJECT, sweep_id, job_id)


def delete(database: Database, model_id: str) -> None:
    with database.transaction() as session:
        models.delete(session, PROJECT, model_id)


def test_a_sweep_is_ordinary_jobs_in_the_order_of_its_grid(stocked: Database) -> None:
    sweep_id, job_ids = make_sweep(stocked, learning_rate=RATES, beta=[0.1, 0.5])
    found = [read(stocked, job_id) for job_id in job_ids]
    assert [(job.training["learning_rate"], job.training["beta"]) for job in found] == [
        (rate, beta) for rate in RATES for beta in (0.1, 0.5)
    ]
    assert [(job.sweep_id, job.sweep_place, job.state) for job in found] == [
        (sweep_id, place, "validating") for place in range(6)
    ]
    assert len({job.result_name for job in found}) == 6
    codes = event_codes(stocked, job_ids[1])
    assert codes == ["job_created", "validating_files", "no_worker_large_enough", "sweep_job"]
    with stocked.transaction() as session:
        (event,) = jobs.list_events(session, PROJECT, job_ids[1], limit=1).items
        sweep = sweeps.get(session, PROJECT, sweep_id)
        page = sweeps.list_jobs(session, PROJECT, sweep_id, after=job_ids[1], limit=2)
    assert event.message.startswith(f"Job 2 of 6 of the sweep {sweep_id}; {job_ids[0]} leads: ")
    assert [axis["field"] for axis in sweep.axes] == ["learning_rate", "beta"]
    assert sweep.result_name == f"default/tiny-sweep-{sweep_id[-8:]}"
    assert ([job.id for job in page.items], page.has_more) == (job_ids[2:4], True)


def test_nothing_is_made_when_one_combination_cannot_be(stocked: Database) -> None:
    request = read_sweep(body(training={"reference": ["start", "base/unknown"]}))
    with pytest.raises(InvalidRequest) as refused, stocked.transaction() as session:
        sweeps.create(session, PROJECT, request)
    assert str(refused.value).startswith('With reference "base/unknown": There is no model')
    assert refused.value.param == "training.reference"
    with stocked.transaction() as session:
        assert [session.scalar(select(func.count()).select_from(kind)) for kind in (Job, Sweep)] == [0, 0]


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (Repeatable(idempotency_key="k"), Repeatable(idempotency_key="k")),
        (Repeatable(api_key_id="key-1"), Repeatable(api_key_id="key-1", is_retry=True)),
    ],
)
def test_a_request_that_comes_twice_makes_one_sweep(stocked: Database, first: Repeatable, again: Repeatable) -> None:
    request = read_sweep(body(training={"beta": [0.1, 0.5]}))
    made = []
    for repeatable in (first, again):
        with stocked.transaction() as session:
            made.append(sweeps.create(session, PROJECT, request, repeatable=repeatable).id)
    assert made[0] == made[1]
    with stocked.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 2


def test_a_key_of_a_sweep_makes_no_job(stocked: Database) -> None:
    keyed = Repeatable(idempotency_key="k")
    request = read_sweep(body(training={"beta": [0.1, 0.5]}))
    with stocked.transaction() as session:
        sweeps.create(session, PROJECT, request, repeatable=keyed)
    with pytest.raises(InvalidRequest, match="was used with another body"), stocked.transaction() as session:
        jobs.create(session, PROJECT, request.combinations[0].request, repeatable=keyed)


def test_another_projects_sweep_is_not_there(stocked: Database) -> None:
    sweep_id, _ = make_sweep(stocked)
    with stocked.transaction() as session:
        add_project(session, "proj-2", "other")
        with pytest.raises(NotFound, match="There is no sweep"):
            sweeps.get(session, "proj-2", sweep_id)
        assert sweeps.list_sweeps(session, "proj-2").items == []
        assert [sweep.id for sweep in sweeps.list_sweeps(session, PROJECT).items] == [sweep_id]


def test_jobs_that_were_measured_on_other_rows_are_not_compared(stocked: Database) -> None:
    """The shortest `max_length` leaves out hard rows, and so looks best."""
    sweep_id, job_ids = make_sweep(stocked, max_length=[64, 128, 256])
    run_all(stocked, [0.99, 0.81, 0.78], held_out=[10, 20, 20])
    rows = table(stocked, sweep_id)
    assert [(row.pairs, row.comparable, row.within_best) for row in rows] == [
        (10, False, False),
        (20, True, True),
        (20, True, True),
    ]
    assert [row.job_id for row in rows if row.best] == [job_ids[1]]
    assert rows[0].metrics["rewards/accuracies"] == 0.99, "what it reached is told all the same"


def test_the_best_is_told_and_what_may_be_as_good(stocked: Database) -> None:
    sweep_id, job_ids = make_sweep(stocked)
    run_all(stocked, [0.70, 0.81, 0.78])
    rows = table(stocked, sweep_id)
    assert [row.job_id for row in rows] == job_ids
    assert [row.values for row in rows] == [{"learning_rate": rate} for rate in RATES]
    assert [(row.best, row.within_best) for row in rows] == [(False, False), (True, True), (False, True)]
    # Of the best checkpoint, not of the last evaluation, and never of the starting model.
    assert [(row.evaluated_step, row.metrics["rewards/accuracies"]) for row in rows] == [(5, 0.7), (5, 0.81), (5, 0.78)]
    assert rows[1].metrics["rewards/accuracies/low"] == pytest.approx(0.76)
    assert rows[1].model == f"{read(stocked, job_ids[1]).result_name}-best"
    with stocked.transaction() as session:
        sweep = sweeps.get(session, PROJECT, sweep_id)
        assert sweeps.states(session, [sweep]) == {sweep_id: Counter({State.succeeded: 3})}


def test_jobs_on_their_way_are_compared_by_what_is_known(stocked: Database) -> None:
    sweep_id, job_ids = make_sweep(stocked)
    assert best_of(table(stocked, sweep_id)) is None
    validate(stocked, GROUP)
    taken = claimed(stocked)
    evaluate(stocked, taken, 0, 0.5)
    assert best_of(table(stocked, sweep_id)) is None
    evaluate(stocked, taken, 2, 0.6)
    evaluate(stocked, taken, 4, 0.55, wide=-0.01)
    first = best_of(table(stocked, sweep_id))
    assert first is not None
    assert (first.job_id, first.evaluated_step, first.model) == (job_ids[0], 4, None)
    assert first.within_best, "whatever its interval says"
    with stocked.transaction() as session:
        jobs.cancel(session, PROJECT, job_ids[0])
    assert best_of(table(stocked, sweep_id)) is None


def test_supervised_jobs_are_compared_by_their_loss(stocked: Database) -> None:
    sweep_id, _ = make_sweep(stocked, method={"type": "supervised"})
    run_all(stocked, [0.70, 0.81, 0.78])
    assert [row.best for row in table(stocked, sweep_id)] == [False, True, False]


def test_cancelling_ends_what_is_not_over(stocked: Database) -> None:
    sweep_id, job_ids = make_sweep(stocked)
    validate(stocked, GROUP)
    taken = claimed(stocked)
    publish(stocked, taken, 10, final=True)
    succeed(stocked, taken)
    with stocked.transaction() as session:
        sweep = sweeps.cancel(session, PROJECT, sweep_id)
        assert {job.waits_for for job in sweeps.jobs_of(session, sweep)} == {None}
    assert [read(stocked, job_id).state for job_id in job_ids] == ["succeeded", "cancelled", "cancelled"]
    with pytest.raises(Conflict, match="are over already"), stocked.transaction() as session:
        sweeps.cancel(session, PROJECT, sweep_id)
    with stocked.transaction() as session:
        assert sweeps.cancel(session, PROJECT, sweep_id, repeated=True).id == sweep_id


def test_the_best_job_is_promoted_and_then_another(stocked: Database) -> None:
    sweep_id, job_ids = make_sweep(stocked)
    run_all(stocked, [0.70, 0.81, 0.78])
    model = promote(stocked, sweep_id)
    assert (model.job_id, model.step, model.storage_prefix) == (job_ids[1], 5, f"bytes/{job_ids[1]}/5")
    assert event_codes(stocked, job_ids[1])[-1] == "promoted"
    again = promote(stocked, sweep_id, job_ids[0])
    assert (again.id, again.storage_prefix) == (model.id, f"bytes/{job_ids[0]}/5")
    with stocked.transaction() as session:
        assert not [prefix for prefix in noted(session) if prefix.startswith("bytes/")]
        assert models.get(session, PROJECT, model.id).storage_prefix == f"bytes/{job_ids[0]}/5"


def test_bytes_go_with_the_last_of_their_names(stocked: Database) -> None:
    sweep_id, job_ids = make_sweep(stocked)
    run_all(stocked, [0.70, 0.81, 0.78])
    name = read(stocked, job_ids[1]).result_name
    promoted = promote(stocked, sweep_id).id
    delete(stocked, f"{name}-best")
    delete(stocked, f"{name}-step-5")
    with stocked.transaction() as session:
        assert f"bytes/{job_ids[1]}/5" not in noted(session)
    # The name goes to another job, and nothing stands for the first one's bytes any more.
    promote(stocked, sweep_id, job_ids[2])
    with stocked.transaction() as session:
        assert f"bytes/{job_ids[1]}/5" in noted(session)
    delete(stocked, promoted)
    with stocked.transaction() as session:
        assert f"bytes/{job_ids[2]}/5" not in noted(session)
        assert models.get(session, PROJECT, f"{read(stocked, job_ids[2]).result_name}-best").step == 5


def test_where_the_best_checkpoint_is_deleted_the_last_one_is_promoted(stocked: Database) -> None:
    sweep_id, job_ids = make_sweep(stocked)
    run_all(stocked, [0.70, 0.81, 0.78])
    name = read(stocked, job_ids[1]).result_name
    delete(stocked, f"{name}-best")
    assert table(stocked, sweep_id)[1].model == name
    assert promote(stocked, sweep_id).step == 10
    delete(stocked, name)
    assert table(stocked, sweep_id)[1].model is None
    with pytest.raises(Conflict, match="are deleted, so there is nothing") as refused:
        promote(stocked, sweep_id)
    assert refused.value.code == "model_deleted"


def test_what_cannot_be_promoted_is_refused(stocked: Database) -> None:
    sweep_id, job_ids = make_sweep(stocked)
    with pytest.raises(Conflict, match="are not over yet, so which is best"):
        promote(stocked, sweep_id)
    with pytest.raises(Conflict, match="is validating; only a job that succeeded"):
        promote(stocked, sweep_id, job_ids[0])
    with pytest.raises(InvalidRequest, match="is no job of the sweep"):
        promote(stocked, sweep_id, "ftjob-unknown")
    with stocked.transaction() as session:
        sweeps.cancel(session, PROJECT, sweep_id)
    with pytest.raises(Conflict, match="so none is best"):
        promote(stocked, sweep_id)


def test_a_promoted_model_in_use_keeps_its_bytes(stocked: Database) -> None:
    sweep_id, job_ids = make_sweep(stocked)
    run_all(stocked, [0.70, 0.81, 0.78])
    promoted = promote(stocked, sweep_id).id
    with stocked.transaction() as session:
        jobs.create(
            session, PROJECT, read_sweep(body(model=promoted, training={"beta": [0.2]})).combinations[0].request
        )
    with pytest.raises(Conflict, match="in use by the unfinished job"):
        promote(stocked, sweep_id, job_ids[0])
    assert promote(stocked, sweep_id).id == promoted, "what it stands for already it may be given at any time"
    assert event_codes(stocked, job_ids[1]).count("promoted") == 1


def test_what_is_known_of_a_promoted_model_goes_when_its_name_goes_to_another_job(stocked: Database) -> None:
    sweep_id, job_ids = make_sweep(stocked)
    run_all(stocked, [0.70, 0.81, 0.78])
    promoted = promote(stocked, sweep_id)
    with stocked.transaction() as session:
        check_id = checks.ask(session, PROJECT, Question("preview", {}, (), (promoted,))).id
    for job_id, kept in ((job_ids[1], True), (job_ids[0], False)):
        promote(stocked, sweep_id, job_id)
        with stocked.transaction() as session:
            assert (checks.read(session, check_id) is not None) == kept
