"""What `make bench-overhead` counts, and that its queue is one that workers can claim from."""

from __future__ import annotations

import json
from itertools import accumulate, pairwise

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
    claim = claims.look(database, 0, queue.free).claim
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


def test_neighbouring_steps_are_compared_and_scaled_by_cpu_time() -> None:
    lengths = [1.0, 1.1, 1.3, 1.0, 9.0, 1.0, 1.2, 1.0]
    ends = [0.0, *accumulate(lengths)]
    steps = [Step(*span) for span in pairwise(ends)]
    order = (False, True, True, False, False, True, True, False)
    late = 0.01  # by so much a step's end is seen after it
    windows = [Window(step.begin + late, step.end + late, which) for step, which in zip(steps, order, strict=True)]
    found = compare(steps[:4] + steps[5:], windows, left_alone=0.02, catching_up=0.05)
    assert (found.pairs, found.alone) == (3, pytest.approx(1.0))
    assert found.supervised == pytest.approx(1.2)
    assert found.cost == pytest.approx(0.2 * 2 / 5)
    assert found.give_or_take == pytest.approx(1.96 * 0.1 / 3**0.5 * 2 / 5)  # differences 0.1, 0.3 and 0.2


def test_too_few_steps_are_refused() -> None:
    windows = [Window(0.0, 1.0, False), Window(1.0, 2.0, True)]
    with pytest.raises(RuntimeError, match="Only 0 pairs of steps could be compared"):
        compare([Step(0.0, 1.0)], windows, 0.01, 0.02)


def test_the_first_step_warms_up() -> None:
    lines = [{"split": split, "step": step, "time": at} for split, step, at in METRICS]
    assert steps_of("\n".join(map(json.dumps, lines))) == [Step(10.0, 12.0), Step(12.0, 13.5)]


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
