"""Faults under the real trainer: the job ends in the same bytes and numbers as one under which nothing died.

The moments are random; DPO_FAULT_SEED repeats an earlier run's. `make faults` strikes five times with every kind.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.faults.campaign import Plan, survive
from tests.faults.deployment import Deployment
from tests.faults.fault import Fault, struck
from tests.faults.invariants import broken
from tests.faults.kinds import FAULTS
from tests.faults.kinds.processes import kill_a_rank, kill_the_worker
from tests.faults.scene import Scene
from tests.faults.stages import stage
from tests.service import poll_until

LONG = [fault for fault in FAULTS if "real" in fault.trainers and not fault.once]


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    with stage("plain", "real") as deployment:
        yield deployment


def test_a_rank_dies_and_then_the_worker(deployment: Deployment, seed: int, tell: Callable[[str], None]) -> None:
    struck_before: Counter[str] = Counter()

    def strike(scene: Scene) -> None:
        (kill_a_rank if not struck_before[scene.job_id] else kill_the_worker)(scene)
        struck_before[scene.job_id] += 1

    tell("a rank and then the worker")
    play = struck(strike, another_attempt=True, one_job=True)
    fault = Fault("a rank and then the worker", "", play, trainers=("real",))
    survive(deployment, Plan(fault, "real", 0, strikes=2), seed)


def test_paused_and_resumed(deployment: Deployment, seed: int, tell: Callable[[str], None]) -> None:
    """Real ranks stop after a checkpoint and leave nothing behind; the resumed run ends in the same bytes."""
    step = random.Random(f"{seed} pause").randrange(deployment.size.steps // 6)  # the order has to come before the end
    tell(f"paused at step {step}")
    job_id = deployment.start_job()
    poll_until(lambda: deployment.reached(job_id)[1] >= step, f"{job_id} is at step {step}", every=0.01)
    deployment.service.openai.fine_tuning.jobs.pause(job_id)
    poll_until(lambda: deployment.job(job_id).state != "pausing", f"{job_id} is paused")
    assert deployment.job(job_id).state == "paused"
    deployment.service.nothing_left()
    assert deployment.service.openai.fine_tuning.jobs.resume(job_id).status == "queued"
    deployment.over(job_id)
    assert broken(deployment, job_id) == []
    assert [attempt.outcome for attempt in deployment.attempts(job_id)] == ["succeeded", "stopped", "succeeded"]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", LONG, ids=lambda fault: fault.name)
def test_two_strikes(deployment: Deployment, seed: int, tell: Callable[[str], None], fault: Fault) -> None:
    tell(fault.name)
    survive(deployment, Plan(fault, "real", 0, strikes=2), seed)
