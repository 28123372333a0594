"""What `make bench-overhead` counts, and that its queue is one that workers can claim from."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from sqlalchemy import func, select

from benchmarks import claims, overhead
from benchmarks.supervision import Step, Window, compare, steps_of
from benchmarks.timeline import MILESTONES, own_share
from control_plane.database import Database
from control_plane.tables import Job

METRICS = (("train", 1, 10.0), ("train", 2, 12.0), ("validation", 2, 12.7), ("train", 3, 13.5))


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


def test_steps_are_compared_between_the_windows_that_hold_them_whole() -> None:
    windows = [Window(0.0, 4.0, False), Window(4.0, 8.0, True), Window(8.0, 12.0, True), Window(12.0, 16.0, False)]
    ends = [0.5, 1.5, 2.5, 3.5, 4.6, 5.7, 6.8, 7.9, 9.2, 10.4, 11.6, 12.6, 13.6, 14.6, 15.6]
    steps = [Step(number, *span) for number, span in enumerate(pairwise(ends))]
    found = compare(steps, windows, service_cpu_share=0.03)
    assert found.alone == pytest.approx(1.0)
    assert found.supervised == pytest.approx((1.1 + 1.2) / 2)
    assert found.cost == pytest.approx((0.1 + 0.2) / 2)
    assert found.give_or_take == pytest.approx(1.96 * 0.1 / 2, rel=1e-3)  # two costs, 0.1 apart
    assert (found.pairs, found.steps) == (2, 11)


def test_windows_too_short_for_a_step_are_refused() -> None:
    windows = [Window(0.0, 1.0, False), Window(1.0, 2.0, True)]
    with pytest.raises(RuntimeError, match="make windows longer"):
        compare([Step(2, 0.5, 1.5)], windows, 0.0)


def test_the_first_step_warms_up() -> None:
    lines = [{"split": split, "step": step, "time": at} for split, step, at in METRICS]
    assert steps_of("\n".join(map(json.dumps, lines))) == [Step(2, 10.0, 12.0), Step(3, 12.0, 13.5)]


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
        "training": {
            "busy": {"cost": 0.008, "give_or_take": 0.003},
            "a core left": {"cost": 0.004, "give_or_take": 0.003},
        },
        "timeline": {"own_share_seconds": {"post_to_spawn": 0.2, "validated_to_spawn": 0.9}},
        "claims": {"queues": queues},
    }
    assert overhead.reached(facts) == {"busy": False, "a core left": True, "timeline": True, "claims": False}
