"""What `make bench-overhead` counts, and that its queue is one that workers can claim from."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from benchmarks import claims, overhead
from benchmarks.supervised import Run
from benchmarks.timeline import MILESTONES, own_share
from control_plane.database import Database
from control_plane.tables import Job


@pytest.mark.parametrize(("queue", "found"), [(claims.QUEUES[0], True), (claims.QUEUES[1], False)])
def test_a_worker_claims_from_the_queue_what_fits_it(database: Database, queue: claims.Queue, found: bool) -> None:
    claims.fill(database, queue, 200)
    claim = claims.claim_once(database, "w", queue.free)
    assert (claim is not None) == found
    if claim is not None:
        claims.end(database, claim)
    with database.transaction() as session:
        rows = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
        states = {row[0]: row[1] for row in rows}
    assert states == ({"queued": 199, "failed": 1} if found else {"queued": 200})


def test_the_plans_are_those_of_a_claim(database: Database, database_url: str) -> None:
    claims.fill(database, claims.QUEUES[0], 50)
    plans = claims.plans(database_url, claims.QUEUES[0])
    assert "SKIP LOCKED" in plans
    assert "Execution Time" in plans


def test_the_first_step_warms_up() -> None:
    assert Run([10.0, 12.0, 13.5], cpu_seconds=0.0).seconds == [2.0, 1.5]


def test_the_services_own_share() -> None:
    marks = dict.fromkeys(MILESTONES, 9.0) | {
        "validation spawned": 0.25,
        "validation over": 3.0,
        "training spawned": 3.5,
    }
    assert own_share(marks) == {"post_to_spawn": 0.25, "validated_to_spawn": 0.5}


def test_a_goal_is_reached_by_all_of_its_figures() -> None:
    queues = {"short": {"since_due_ms": {"p99": 9.0}}, "long": {"since_due_ms": {"p99": 11.0}}}
    facts = {
        "training": {"busy": {"cost": 0.014}, "a core left": {"cost": 0.004}},
        "timeline": {"own_share_seconds": {"post_to_spawn": 0.2, "validated_to_spawn": 0.9}},
        "claims": {"queues": queues},
    }
    assert overhead.reached(facts) == {"busy": False, "a core left": True, "timeline": True, "claims": False}
