"""Kills without end: workers under many jobs, and everything under one long job."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
from sqlalchemy import func, select

from control_plane.job_states import FINAL
from control_plane.tables import Job
from tests.faults.deployment import Deployment
from tests.faults.fault import Fault, Play, Played, struck
from tests.faults.kinds.processes import kill_a_rank, kill_the_worker, kill_torchrun
from tests.faults.scene import Scene
from tests.service import poll_until

CLIENTS = 4
HOURS = 3 * 3600.0


def storm(jobs: int, every: float) -> Play:
    """That many jobs, while a worker is killed every so many seconds."""

    def play(deployment: Deployment, draw: random.Random, times: int) -> Played:
        del times
        kills, due = 0, time.monotonic() + every

        def all_over() -> bool:
            nonlocal kills, due
            deployment.look_after_workers()
            if time.monotonic() >= due:
                workers = deployment.workers()
                with suppress(psutil.NoSuchProcess):
                    if workers:
                        draw.choice(workers).kill()
                        kills += 1
                due = max(due + every, time.monotonic())
            return all(answer.done() for answer in asked) and _unfinished(deployment) == 0

        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = [pool.submit(deployment.start_job) for _ in range(jobs)]
            poll_until(all_over, f"{jobs} jobs are over", seconds=HOURS, every=min(0.5, every))
        return Played([], jobs=[answer.result() for answer in asked], strikes=kills)

    return play


def _unfinished(deployment: Deployment) -> int:
    query = select(func.count()).where(Job.state.not_in(FINAL))
    return deployment.ask(lambda session: session.scalar(query) or 0)


def kill_something(scene: Scene) -> None:
    scene.draw.choice([kill_a_rank, kill_torchrun, kill_the_worker])(scene)


FAULTS = [
    Fault(
        "1000 jobs on 4 workers of which one is killed every 2 s",
        "every job succeeds, and publishes its result once",
        storm(jobs=1000, every=2.0),
        stage="storm",
        once=True,
    ),
    Fault(
        "30 jobs on 2 workers of which one is killed every 60 s",
        "every job succeeds, with the same weights",
        storm(jobs=30, every=60.0),
        stage="real storm",
        trainers=("real",),
        once=True,
    ),
    Fault(
        "a job of 200 steps killed 20 times",
        "it ends in the same bytes",
        struck(kill_something, another_attempt=True, one_job=True),
        stage="long",
        trainers=("real",),
        once=True,
        strikes=20,
    ),
]
