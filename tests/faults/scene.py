"""One job, the moment at which a fault strikes it, and how long it takes until the job trains again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from tests.faults.deployment import Deployment
from tests.service import poll_until

MISSES = 8
"""A job may be over before the fault strikes; then it is another job's turn, but not for ever."""


class Missed(Exception):
    """The job was over, or between two attempts, when the fault came."""


@dataclass(frozen=True)
class Moment:
    """While an attempt of this kind `validates` or `starts`, or once it measured `step`, and `later` seconds on."""

    step: int
    """-2 while the job is validated, -1 while its first step is on its way."""

    later: float = 0.0

    def __str__(self) -> str:
        return {-2: "validating", -1: "starting"}.get(self.step, f"step {self.step}")


def draw_moments(draw: random.Random, deployment: Deployment, count: int, earliest: int = -2) -> list[Moment]:
    """One in each of `count` equal parts of the job, in their order: some progress lies between two of them. Where
    `earliest` allows it, the first may come before the first step."""
    size = deployment.size
    last = size.steps - max(2, size.steps // 8)  # a later one would come after the end
    first = max(earliest, 0)
    width = (last - first) / count
    steps = [first + int(width * part + draw.uniform(0, width)) for part in range(count)]
    if draw.random() < 0.25:
        steps[0] = draw.randint(earliest, steps[0])
    return [Moment(step, draw.uniform(0, size.pace)) for step in steps]


class Scene:
    """A job of a deployment. A strike asks it for its victims, and may say when the fault was over."""

    def __init__(self, deployment: Deployment, draw: random.Random, moment: Moment, job_id: str) -> None:
        self.deployment, self.draw, self.moment, self.job_id = deployment, draw, moment, job_id
        self.others: list[str] = []
        """More jobs that were accepted meanwhile, and must not be lost either."""
        self.recovery: float | None = None
        self._from = deployment.reached(job_id)
        self._since = time.monotonic()
        self._ask_at = 0.0

    def wait(self, behind: int) -> None:
        """Until an attempt later than fence `behind` is at the moment."""
        poll_until(lambda: self._due(behind), f"{self.job_id} is at {self.moment}, behind attempt {behind}", every=0.01)
        time.sleep(self.moment.later)
        if self.deployment.is_over(self.job_id):
            raise Missed
        self.mark()

    def _due(self, behind: int) -> bool:
        fence, step = self.deployment.reached(self.job_id)
        if fence > behind:
            if step >= max(0, self.moment.step) or (self.moment.step == -2 and self.deployment.ranks(self.job_id)):
                return True
            if self.moment.step == -1 and self.deployment.ranks(self.job_id):
                return self.deployment.attempts(self.job_id)[-1].kind == "train"
        if self._asks_again() and self.deployment.is_over(self.job_id):
            raise Missed
        return False

    def _asks_again(self) -> bool:
        """The database is asked a few times a second, or the harness would be the heaviest of its clients."""
        now = time.monotonic()
        if now < self._ask_at:
            return False
        self._ask_at = now + 0.3
        return True

    @property
    def fence(self) -> int:
        """Of the attempt that was struck."""
        return self._from[0]

    def mark(self) -> None:
        """From here on recovery is counted: a strike that takes its time calls it when the fault is over."""
        self._from = self.deployment.reached(self.job_id)
        self._since = time.monotonic()

    def await_recovery(self, *, another_attempt: bool) -> None:
        """Until the API is ready and the job trains again: another attempt measured a step, or, where none has to
        follow, this one did."""
        if self.recovery is None:
            trains = self._another_trains if another_attempt else self._goes_on
            what, seconds = f"{self.job_id} trains again after attempt {self.fence}", self.deployment.patience
            poll_until(trains, what, seconds=seconds, every=0.02)
            poll_until(self.deployment.is_ready, "the API is ready", every=0.05)
            self.recovery = time.monotonic() - self._since

    def _another_trains(self) -> bool:
        fence, step = self.deployment.reached(self.job_id)
        if fence > self.fence and step >= 0:
            return True
        return fence != self.fence and self._asks_again() and self.deployment.is_over(self.job_id)

    def _goes_on(self) -> bool:
        fence, step = self.deployment.reached(self.job_id)
        if step >= 0 and (fence, step) > self._from:
            return True
        return self._asks_again() and self.deployment.is_over(self.job_id)

    # -- victims -------------------------------------------------------------------------------------------------

    def ranks(self) -> list[psutil.Process]:
        return self._there(self.deployment.ranks(self.job_id))

    def launched(self) -> psutil.Process:
        return self._one(self.deployment.launched(self.job_id))

    def worker(self) -> psutil.Process:
        return self._one(self.deployment.worker_of(self.job_id))

    def part(self, name: str) -> psutil.Process:
        """The running part of `dpo up` of that name."""
        poll_until(lambda: self.deployment.running.part(name) is not None, f"{name} runs")
        return self._one(self.deployment.running.part(name))

    def _one(self, process: psutil.Process | None) -> psutil.Process:
        (found,) = self._there([process] if process is not None else [])
        return found

    def _there(self, processes: list[psutil.Process]) -> list[psutil.Process]:
        if not processes:
            raise Missed
        return processes


def kill(process: psutil.Process) -> None:
    """kill -9, of one that must be there."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        raise Missed from None


Strike = Callable[[Scene], None]
