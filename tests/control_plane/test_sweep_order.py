"""Which jobs of a sweep wait for which, as the claims see it."""

from __future__ import annotations

from threading import Barrier, Thread

import pytest

from control_plane import jobs, leases, results
from control_plane.database import Database
from control_plane.job_states import State
from control_plane.leases import Claim
from dpo_core.run_directory import Failure
from tests.control_plane.rows import PROJECT, job_in
from tests.control_plane.sweeps import GROUP, claim, claimed, make_sweep, measure_reference, read, validate

BAD_FILE = Failure(kind="user", code="bad_rows", message="Line 1 is bad.")


def waits_for(database: Database, job_ids: list[str]) -> list[str | None]:
    return [read(database, job_id).waits_for for job_id in job_ids]


def test_one_job_reads_the_files_and_then_all_are_free(stocked: Database) -> None:
    _, (first, *others) = make_sweep(stocked)
    taken = claimed(stocked)
    assert taken.job_id == first
    assert claim(stocked) is None
    assert waits_for(stocked, others) == [first, first]
    with stocked.transaction() as session:
        results.finish_validation(session, taken, {"reference_group": GROUP})
    assert [claimed(stocked, "validate").job_id for _ in others] == others


def test_one_job_measures_the_reference_and_then_all_may_train(stocked: Database) -> None:
    _, (first, *others) = make_sweep(stocked)
    validate(stocked, GROUP, GROUP, GROUP)
    leader = claimed(stocked)
    assert leader.job_id == first
    assert waits_for(stocked, [first, *others]) == [None, first, first]
    assert claim(stocked) is None
    measure_reference(stocked, leader)
    assert waits_for(stocked, others) == [None, None]
    assert [claimed(stocked).job_id for _ in others] == others


def test_a_leader_that_fails_on_the_files_hands_on(stocked: Database) -> None:
    _, job_ids = make_sweep(stocked)
    for job_id in job_ids:
        taken = claimed(stocked)
        assert taken.job_id == job_id
        assert claim(stocked) is None
        with stocked.transaction() as session:
            results.fail(session, taken, BAD_FILE, max_attempts=3)
    assert claim(stocked) is None


@pytest.mark.parametrize("ending", ["failed", "cancelled", "paused"])
def test_a_leader_that_ends_or_pauses_before_it_measured_hands_on(stocked: Database, ending: str) -> None:
    _, (first, second, third) = make_sweep(stocked)
    validate(stocked, GROUP, GROUP, GROUP)
    leader = claimed(stocked)
    with stocked.transaction() as session:
        if ending == "failed":
            results.fail(session, leader, BAD_FILE, max_attempts=3)
        elif ending == "cancelled":
            jobs.cancel(session, PROJECT, first)
        else:
            leases.held(session, leader).state = State.pausing.value
            results.hand_back(session, leader)
    assert waits_for(stocked, [second, third]) == [None, second]
    assert claimed(stocked).job_id == second
    assert claim(stocked) is None


def test_a_lost_leader_goes_on_first(stocked: Database) -> None:
    _, (first, *_) = make_sweep(stocked)
    validate(stocked, GROUP, GROUP, GROUP)
    leader = claimed(stocked)
    with stocked.transaction() as session:
        results.hand_back(session, leader)
    assert claimed(stocked).job_id == first
    assert claim(stocked) is None


def test_each_reference_has_a_leader_of_its_own(stocked: Database) -> None:
    _, job_ids = make_sweep(stocked, beta=[0.1, 0.2, 0.3, 0.4])
    validate(stocked, "a", "b", "a", "b")
    first, second = claimed(stocked), claimed(stocked)
    assert [first.job_id, second.job_id] == job_ids[:2]
    assert waits_for(stocked, job_ids[2:]) == job_ids[:2]
    measure_reference(stocked, second)
    assert claimed(stocked).job_id == job_ids[3]
    assert claim(stocked) is None


def test_jobs_without_a_reference_train_at_once(stocked: Database) -> None:
    _, job_ids = make_sweep(stocked)
    validate(stocked, None, None, None)
    assert [claimed(stocked).job_id for _ in job_ids] == job_ids


def test_what_waits_for_its_sweep_holds_nothing_else_back(stocked: Database) -> None:
    make_sweep(stocked)
    validate(stocked, GROUP, GROUP, GROUP)
    claimed(stocked)
    with stocked.transaction() as session:
        assert not leases.waiting(session)
        other = job_in(session, State.queued).id
    assert claimed(stocked).job_id == other


def test_workers_that_race_train_one_job_until_its_reference_is_measured(stocked: Database) -> None:
    _, job_ids = make_sweep(stocked, beta=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    validate(stocked, *[GROUP] * len(job_ids))
    together, taken = Barrier(8), list[Claim | None]()

    def work() -> None:
        together.wait()
        taken.append(claim(stocked))

    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.job_id for one in taken if one is not None] == job_ids[:1]
