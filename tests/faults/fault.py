"""What a fault is: its promise, how it is played, and what it needs of the machine."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tests.faults.deployment import Deployment, Trainer
from tests.faults.scene import MISSES, Missed, Moment, Scene, Strike, draw_moments

Stage = Literal["plain", "network", "disk", "clock", "storm", "real storm", "long"]
"""Which deployment it plays on: see stages.py."""


@dataclass
class Played:
    """What came of it: a number of seconds for each strike, and the jobs, which are over or will be."""

    recoveries: list[float]
    jobs: list[str] = field(default_factory=list)
    doomed: list[str] = field(default_factory=list)
    """Jobs that have to fail."""
    moments: list[str] = field(default_factory=list)
    strikes: int | None = None
    """Where recovery is not measured for each."""


Play = Callable[[Deployment, random.Random, int], Played]
"""Strikes a job of the deployment that many times. Raises AssertionError where a promise isn't kept."""


@dataclass(frozen=True)
class Fault:
    name: str
    promise: str
    """What a user is promised, for docs/reliability.md."""
    play: Play
    stage: Stage = "plain"
    trainers: tuple[Trainer, ...] = ("stub",)
    lacks: Callable[[], str | None] = lambda: None
    """Why it can't be played on this machine, if so."""
    sets_clock: bool = False
    """PostgreSQL's times mean nothing afterwards."""
    once: bool = False
    """One play is enough."""
    strikes: int | None = None
    """In one play, where it takes another number than others."""


def struck(strike: Strike, *, another_attempt: bool, earliest: int = -2, one_job: bool = False) -> Play:
    """Plays a strike at random moments of a job; `another_attempt`: it ends the attempt that it comes upon.

    A job may be over before it was struck so often; the next one takes the rest, or all of it where it has to be
    `one_job`.
    """

    def play(deployment: Deployment, draw: random.Random, times: int) -> Played:
        played, misses = Played([]), 0
        while len(played.recoveries) < times:
            before = len(played.recoveries)
            try:
                _strike_a_job(deployment, draw, draw_moments(draw, deployment, times - before, earliest), played)
            except Missed:
                misses = misses + 1 if one_job or len(played.recoveries) == before else 0
                if misses == MISSES:
                    raise Missed(f"{misses} jobs were over before the fault came: this machine is too busy") from None
                if one_job:
                    played = Played([])
        return played

    def _strike_a_job(deployment: Deployment, draw: random.Random, moments: list[Moment], played: Played) -> None:
        fence, job_id = 0, deployment.start_job()
        played.jobs.append(job_id)
        for moment in moments:
            scene = Scene(deployment, draw, moment, job_id)
            scene.wait(behind=fence)
            try:
                strike(scene)
            finally:
                played.jobs += scene.others
            scene.await_recovery(another_attempt=another_attempt)
            assert scene.recovery is not None
            deployment.look_after_workers()
            played.recoveries.append(scene.recovery)
            played.moments.append(str(moment))
            fence = scene.fence if another_attempt else 0

    return play
