"""The API dies: between requests, during one, and between a job's commit and its hint."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import func, select

from control_plane.tables import Job
from tests.faults.deployment import Deployment
from tests.faults.fault import Fault, Played, struck
from tests.faults.scene import Scene, kill
from tests.service import poll_until


def kill_the_api(scene: Scene) -> None:
    """While a client asks for another job; it repeats its request."""
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(scene.deployment.start_job)
        time.sleep(scene.draw.uniform(0.0, 0.1))
        kill(scene.part("api"))
        scene.mark()
        scene.others.append(other.result())


def kill_between_commit_and_hint(deployment: Deployment, draw: random.Random, times: int) -> Played:
    """Redis hangs, so that the hint of a job that is committed doesn't get away; then both are killed.

    The client had no answer, and asks again: it is told of the same job.
    """
    del draw, times
    poll_until(lambda: deployment.running.part("redis") is not None, "Redis runs")
    broker, api = deployment.running.part("redis"), deployment.running.part("api")
    assert broker is not None, "Redis has just been there"
    assert api is not None, "the API runs"
    before = _jobs(deployment)
    broker.suspend()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(deployment.start_job)
        poll_until(lambda: _jobs(deployment) > before, "the job is committed", every=0.005)
        since = time.monotonic()
        api.kill()
        broker.kill()
        job_id = asked.result()
    poll_until(lambda: _trains(deployment, job_id), f"{job_id} trains", every=0.02)
    recovery = time.monotonic() - since
    assert _jobs(deployment) == before + 1, "the repeated request made a second job"
    return Played([recovery], jobs=[job_id])


def _jobs(deployment: Deployment) -> int:
    return deployment.ask(lambda session: session.scalar(select(func.count()).select_from(Job)) or 0)


def _trains(deployment: Deployment, job_id: str) -> bool:
    return deployment.reached(job_id)[1] >= 0 or deployment.is_over(job_id)


FAULTS = [
    Fault(
        "kill -9 of the API during a request",
        "runs don't notice; a client that asks again is told of the job that it made, if it did",
        struck(kill_the_api, another_attempt=False),
        trainers=("stub", "real"),
    ),
    Fault(
        "kill -9 of the API between commit and hint",
        "the job is found without its hint, and the repeated request makes no second one",
        kill_between_commit_and_hint,
    ),
]
