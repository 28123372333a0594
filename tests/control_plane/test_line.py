"""Who is next in the line: shares of projects, what keeps a place, and what a long line costs."""

from __future__ import annotations

import pytest
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from control_plane import jobs, leases, publication, results
from control_plane.database import Database
from control_plane.job_requests import read_request
from control_plane.job_states import State
from control_plane.leases import Claim
from control_plane.tables import Job
from dpo_core.run_directory import Manifest
from tests.control_plane.rows import FILE, PROJECT, add_file, add_project, body, create, read_job, set_clock_ahead

OTHER = "proj-2"


@pytest.fixture
def shared(stocked: Database) -> Database:
    """Two projects."""
    with stocked.transaction() as session:
        add_project(session, OTHER, "other")
        add_file(session, "file-2", project_id=OTHER)
    return stocked


def add(session: Session, project_id: str, *, gpus: int = 1, state: State = State.queued, **changes: object) -> str:
    file = FILE if project_id == PROJECT else "file-2"
    request = read_request(body(training_file=file, resources={"gpus": gpus}, **changes))
    job = jobs.create(session, project_id, request)
    job.state = state.value
    session.flush()
    return job.id


def queue(database: Database, project_id: str, count: int = 1, **changes: object) -> list[str]:
    with database.transaction() as session:
        return [add(session, project_id, **changes) for _ in range(count)]  # type: ignore[arg-type]


def take(
    database: Database, *, free: int = 1, total: int = 8, worker_id: str = "w1", max_attempts: int | None = None
) -> Claim | None:
    with database.transaction() as session:
        return leases.claim(
            session, worker_id=worker_id, free=free, total=total, lease_seconds=30, max_attempts=max_attempts
        )


def projects_taken(database: Database, count: int) -> list[str]:
    taken = [take(database) for _ in range(count)]
    return [claim.project_id if claim else "" for claim in taken]


def end(database: Database, claim: Claim) -> None:
    with database.transaction() as session:
        if claim.kind == "validate":
            results.finish_validation(session, claim, {})
            return
        publication.publish_checkpoint(session, claim, Manifest(step=1, kind="full", files=[], final=True), "p")
        results.succeed(session, claim)


def test_a_project_with_many_jobs_shares_with_one_that_came_later(shared: Database) -> None:
    queue(shared, PROJECT, 50)
    queue(shared, OTHER, 3)
    assert projects_taken(shared, 8) == [PROJECT, OTHER] * 3 + [PROJECT, PROJECT], "the one that holds less, in turn"


def test_one_slot_is_used_in_turns(shared: Database) -> None:
    """Nobody holds anything when the only slot comes free: whose last start was longest ago."""
    queue(shared, PROJECT, 20)
    queue(shared, OTHER, 3)
    served = []
    for _ in range(8):
        claim = take(shared, total=1)
        assert claim is not None
        served.append(claim.project_id)
        end(shared, claim)
    assert served == [PROJECT, OTHER] * 3 + [PROJECT, PROJECT]


def test_shares_are_counted_in_gpus(shared: Database) -> None:
    queue(shared, PROJECT, 2, gpus=4)
    queue(shared, OTHER, 6)
    order = [take(shared, free=4) for _ in range(6)]
    assert [claim and claim.gpus for claim in order] == [4, 1, 1, 1, 1, 4]


def test_data_is_read_in_turns_too(shared: Database) -> None:
    queue(shared, PROJECT, 5, state=State.validating)
    queue(shared, OTHER, 2, state=State.validating)
    assert projects_taken(shared, 5) == [PROJECT, OTHER, PROJECT, OTHER, PROJECT]


def test_a_higher_priority_goes_before_every_share(shared: Database) -> None:
    queue(shared, PROJECT, 3, priority="high")
    queue(shared, OTHER, 1)
    assert projects_taken(shared, 4) == [PROJECT, PROJECT, PROJECT, OTHER]


def test_within_a_project_age_counts_whatever_the_need(shared: Database) -> None:
    made = [queue(shared, PROJECT, gpus=gpus)[0] for gpus in (2, 1, 3, 1, 2)]
    assert [claim.job_id for claim in iter(lambda: take(shared, free=8), None)] == made


def test_a_large_job_keeps_younger_ones_of_every_project_back(shared: Database) -> None:
    (large,) = queue(shared, PROJECT, gpus=4)
    queue(shared, OTHER, 3)
    with shared.transaction() as session:
        set_clock_ahead(session, 121)
    assert take(shared, free=3, total=4) is None
    claim = take(shared, free=4, total=4)
    assert claim is not None and claim.project_id == PROJECT, "both hold nothing and had no start: the older one"
    assert claim.job_id == large


def test_locked_jobs_are_passed_over(shared: Database) -> None:
    first, second = queue(shared, PROJECT, 2)
    with shared.transaction() as other:
        other.get_one(Job, first, with_for_update=True)
        claim = take(shared)
    assert claim is not None and claim.job_id == second


def rest(database: Database, job_id: str, how_long: str) -> None:
    statement = "UPDATE jobs SET not_before = dpo_now() + cast(:how_long AS interval) WHERE id = :id"
    with database.transaction() as session:
        session.execute(text(statement), {"id": job_id, "how_long": how_long})


def test_no_job_that_rests_holds_others_up(shared: Database) -> None:
    first, second = queue(shared, PROJECT, 2)
    rest(shared, first, "1 minute")
    claim = take(shared)
    assert claim is not None and claim.job_id == second


def test_no_job_rests_for_as_long_as_a_clock_was_ahead(shared: Database) -> None:
    """PostgreSQL's clock was an hour ahead when it was to rest for a minute, and was set right then."""
    first, _ = queue(shared, PROJECT, 2)
    rest(shared, first, "61 minutes")
    claim = take(shared)
    assert claim is not None and claim.job_id == first


MOST = 5
"""Attempts in vain that end a job."""


def leave_one_attempt(database: Database, *job_ids: str) -> None:
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id.in_(job_ids)).values(fruitless_attempts=MOST - 1))


def test_no_worker_has_two_jobs_with_one_attempt_left(shared: Database) -> None:
    first, second, third = queue(shared, PROJECT, 3)
    leave_one_attempt(shared, first, second)
    claims = [take(shared, free=8, max_attempts=MOST) for _ in range(3)]
    assert [claim and claim.job_id for claim in claims] == [first, third, None]
    elsewhere = take(shared, free=8, worker_id="w2", max_attempts=MOST)
    assert elsewhere is not None and elsewhere.job_id == second, "another worker takes it"


def test_a_checkpoint_gives_a_job_its_attempts_back_and_others_their_place(shared: Database) -> None:
    first, second = queue(shared, PROJECT, 2)
    leave_one_attempt(shared, first, second)
    claim = take(shared, free=8, max_attempts=MOST)
    assert claim is not None and claim.job_id == first and take(shared, free=8, max_attempts=MOST) is None
    with shared.transaction() as session:
        publication.publish_checkpoint(session, claim, Manifest(step=1, kind="full", files=[]), "p")
    following = take(shared, free=8, max_attempts=MOST)
    assert following is not None and following.job_id == second
    assert read_job(shared, first).fruitless_attempts == 0


def test_a_large_job_with_one_attempt_left_keeps_no_room_that_it_would_not_get(shared: Database) -> None:
    small, large, young = (queue(shared, PROJECT, 1, gpus=gpus)[0] for gpus in (1, 8, 1))
    leave_one_attempt(shared, small, large)
    claim = take(shared, free=8, max_attempts=MOST)
    assert claim is not None and claim.job_id == small
    with shared.transaction() as session:
        session.execute(text("UPDATE jobs SET created_at = created_at - interval '1 hour'"))
    passing = take(shared, free=7, max_attempts=MOST)
    assert passing is not None and passing.job_id == young


def test_the_line_s_length_costs_nothing(shared: Database) -> None:
    """Whatever waits, a claim looks at a few rows through the index: also a worker's that none of it fits."""
    with shared.transaction() as session:
        template = create(session).id
        columns = [column.name for column in Job.__table__.columns if column.name not in ("id", "needs", "result_name")]
        fixed = {"state": "'queued'", "gpus": "8", "created_at": "created_at + n * interval '1 ms'"}
        chosen = ", ".join(fixed.get(name, name) for name in columns)
        session.execute(
            text(
                f"INSERT INTO jobs (id, result_name, {', '.join(columns)}) "  # noqa: S608 - our own names
                f"SELECT 'job-' || n, 'model-' || n, {chosen} FROM jobs, generate_series(1, 20000) n WHERE id = :id"
            ),
            {"id": template},
        )
        session.execute(text("ANALYZE jobs"))
    read = [rows_read(shared, free) for free in (0, 1, 8)]
    assert max(read) < 100, read


def rows_read(database: Database, free: int) -> int:
    """Rows of `jobs` that a claim fetches, by PostgreSQL's own count."""
    count = text("SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'jobs'")
    with database.transaction() as session:
        before = session.scalar(count) or 0
        leases.claim(session, worker_id="w", free=free, total=8, lease_seconds=30, kinds=("train",))
        after = session.scalar(count) or 0
        session.rollback()
    return int(after - before)
