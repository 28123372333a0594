"""What a project's jobs share of the reference: who sees it, what goes first, and what happens to damage."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from control_plane import jobs, reference_cache
from control_plane.database import Database
from control_plane.errors import StaleFence
from control_plane.job_requests import read_request
from control_plane.leases import Claim
from control_plane.tables import Job, ReferenceShard
from tests.control_plane.rows import PROJECT, add_file, add_project, body, event_codes, noted, set_clock_ahead, started

GROUP = "group-1"


def store(database: Database, claim: Claim, number: int, *, limit: int = 1000, group: str = GROUP) -> str:
    key = reference_cache.shard_key(claim, group, f"{number:06}")
    with database.transaction() as session:
        reference_cache.store(session, claim, key=key, group=group, size=100, sha256="0", limit=limit)
    return key


def taken(database: Database, job_id: str, group: str | None = GROUP) -> list[str]:
    with database.transaction() as session:
        job = session.get_one(Job, job_id)
        job.reference_group = group
        return [shard.key for shard in reference_cache.take(session, job)]


def known(database: Database) -> list[str]:
    with database.transaction() as session:
        return list(session.scalars(select(ReferenceShard.key).order_by(ReferenceShard.key)))


def test_a_jobs_shards_are_its_projects_and_its_groups(stocked: Database) -> None:
    claim = started(stocked)
    keys = [store(stocked, claim, number) for number in (0, 1)]
    assert keys[1] == f"private/reference/{PROJECT}/{GROUP}/{claim.job_id}-{claim.fence}-000001"
    assert taken(stocked, claim.job_id) == keys
    assert taken(stocked, claim.job_id, "group-2") == []
    assert taken(stocked, claim.job_id, None) == []
    with stocked.transaction() as session:
        add_project(session, "proj-2", "other")
        add_file(session, "file-2", project_id="proj-2")
        foreign = jobs.create(session, "proj-2", read_request(body(training_file="file-2"))).id
    assert taken(stocked, foreign) == [], "another project never sees them"


def test_storing_a_shard_again_changes_nothing(stocked: Database) -> None:
    claim = started(stocked)
    assert store(stocked, claim, 0) == store(stocked, claim, 0)
    assert len(known(stocked)) == 1


def test_what_was_used_least_recently_goes_first(stocked: Database) -> None:
    claim = started(stocked)
    first, second = store(stocked, claim, 0), store(stocked, claim, 1, group="group-2")
    with stocked.transaction() as session:
        set_clock_ahead(session, 60)
    assert taken(stocked, claim.job_id) == [first]
    third = store(stocked, claim, 2, limit=200)
    assert known(stocked) == sorted([first, third])
    with stocked.transaction() as session:
        assert noted(session) == [second], "its bytes go after the commit"


def test_another_projects_shards_count_for_themselves(stocked: Database) -> None:
    claim = started(stocked)
    key = store(stocked, claim, 0)
    with stocked.transaction() as session:
        add_project(session, "proj-2", "other")
        session.get_one(ReferenceShard, key).project_id = "proj-2"
    other = store(stocked, claim, 1, limit=100)
    assert known(stocked) == sorted([key, other])


def test_a_shard_larger_than_the_limit_goes_at_once(stocked: Database) -> None:
    claim = started(stocked)
    key = store(stocked, claim, 0, limit=99)
    assert known(stocked) == []
    with stocked.transaction() as session:
        assert noted(session) == [key]


def test_a_damaged_shard_is_forgotten_and_said(stocked: Database) -> None:
    claim = started(stocked)
    damaged, whole = store(stocked, claim, 0), store(stocked, claim, 1)
    with stocked.transaction() as session:
        reference_cache.drop(session, claim, [session.get_one(ReferenceShard, damaged)])
        assert noted(session) == [damaged]
    assert known(stocked) == [whole]
    assert event_codes(stocked, claim.job_id)[-1] == "reference_cache_damaged"


def test_who_lost_the_job_stores_nothing(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        jobs.cancel(session, PROJECT, claim.job_id)
    with pytest.raises(StaleFence):
        store(stocked, claim, 0)
    assert known(stocked) == []
