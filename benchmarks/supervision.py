"""What supervision costs a training step, measured within one run.

While a job trains, everything of the service but its trainers stands still for every other step (SIGSTOP, SIGCONT), and
neighbouring steps are compared: what else a host does changes over seconds, and two runs after each other would mostly
show that. Which of two steps comes first is drawn, so that nothing else that comes at intervals can keep time with it.
Every step computes the same: all pairs have the same lengths, and no checkpoint is made.

What comes due while the service stands still is done once it goes on. So the steps beside it bear what belongs to the
others too, and what is measured is scaled by CPU time: that of a service left alone ÷ that of one in those steps. A
benchmark that is killed meanwhile leaves processes that stand still.
"""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.service import ATTEMPT_OF_TRAINING, Service, wait_for
from dpo_core.run_directory import RunDirectory

WARM_UP_STEPS = 20
LEFT_ALONE_SECONDS = 45.0
"""Before the comparison, and again behind it."""
LOOK_SECONDS = 0.005
NORMAL_95 = 1.96
SEED = 1
"""Of the order in which steps are supervised or not."""


@dataclass(frozen=True, slots=True)
class Window:
    """The time of one step."""

    begin: float
    end: float
    """Seconds since 1970."""
    supervised: bool


@dataclass(frozen=True, slots=True)
class Step:
    begin: float
    end: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Supervision:
    alone: float
    """Seconds a step without the service, the mean."""
    supervised: float
    """Seconds a step beside it, the mean; of a service that catches up."""
    cost: float
    """Of a service left alone: (supervised ÷ alone − 1) · its share of a core ÷ `share_catching_up`."""
    give_or_take: float
    """Half of the cost's 95 % confidence interval, as far as steps scatter; CPU times are taken as they are."""
    pairs: int
    """Of neighbouring steps that were compared."""
    share_left_alone: float
    """The service's CPU time ÷ wall clock while nobody stops it."""
    share_catching_up: float
    """The same in steps beside which it runs between two halts."""


def measure(served: Service, request: dict[str, Any], pairs: int) -> Supervision:
    """Trains until `pairs` pairs of steps are over, then cancels the job, which must be long enough."""
    job_id = served.submit(request)
    run = RunDirectory(served.runs / job_id / str(ATTEMPT_OF_TRAINING))
    wait_for(run.metrics_file.exists)
    with open(run.metrics_file, encoding="utf-8") as metrics:  # outlives its name, which goes with the run directory
        wait_for(lambda: run.metrics_file.read_text().count("\n") > WARM_UP_STEPS)
        left_alone = _share_left_alone(served)
        spent = -served.cpu_seconds()
        windows = alternate(served, run.metrics_file, pairs)
        spent += served.cpu_seconds()
        left_alone = (left_alone + _share_left_alone(served)) / 2
        served.cancel(job_id)
        ran = sum(window.end - window.begin for window in windows if window.supervised)
        return compare(steps_of(metrics.read()), windows, left_alone, spent / ran)


def alternate(served: Service, metrics: Path, pairs: int) -> list[Window]:
    """A signal is sent at each step, also where it changes nothing: sending it takes time."""
    order = random.Random(SEED)
    windows: list[Window] = []
    try:
        _next_step(metrics)
        for number in range(pairs):
            first = order.random() < 0.5
            for supervised in (first, not first):
                begin = time.time()
                served.send(signal.SIGCONT if supervised else signal.SIGSTOP)
                _next_step(metrics)
                windows.append(Window(begin, time.time(), supervised))
            if number % 100 == 99:
                print(f"{number + 1} of {pairs} pairs of steps", flush=True)
    finally:
        served.send(signal.SIGCONT)
    return windows


def _share_left_alone(served: Service) -> float:
    began, spent = time.time(), -served.cpu_seconds()
    time.sleep(LEFT_ALONE_SECONDS)
    return (spent + served.cpu_seconds()) / (time.time() - began)


def compare(steps: Iterable[Step], windows: list[Window], left_alone: float, catching_up: float) -> Supervision:
    """Pairs of windows that both have their step; a step belongs to the window that holds its middle."""
    found: list[float | None] = [None for _ in windows]
    place = 0
    for step in steps:
        middle = (step.begin + step.end) / 2
        while place < len(windows) and windows[place].end < middle:
            place += 1
        if place < len(windows) and windows[place].begin <= middle:
            found[place] = step.end - step.begin
    alone: list[float] = []
    supervised: list[float] = []
    for first in range(0, len(windows), 2):
        one, other = found[first : first + 2]
        if one is not None and other is not None:
            (supervised if windows[first].supervised else alone).append(one)
            (alone if windows[first].supervised else supervised).append(other)
    if len(alone) < 2:
        raise RuntimeError(f"Only {len(alone)} pairs of steps could be compared; ask for more.")
    differences = [one - other for one, other in zip(supervised, alone, strict=True)]
    scale = left_alone / catching_up / mean(alone)
    return Supervision(
        alone=mean(alone),
        supervised=mean(supervised),
        cost=mean(differences) * scale,
        give_or_take=NORMAL_95 * stdev(differences) / math.sqrt(len(differences)) * scale,
        pairs=len(differences),
        share_left_alone=left_alone,
        share_catching_up=catching_up,
    )


def steps_of(lines: str) -> list[Step]:
    """The steps of `metrics.jsonl` but the first, from the end of the one before to their own."""
    records = [json.loads(line) for line in lines.splitlines()]
    train = [record for record in records if record["split"] == "train"]
    return [Step(earlier["time"], later["time"]) for earlier, later in pairwise(train)]


def _next_step(metrics: Path) -> None:
    """Returns once something was written."""
    size = metrics.stat().st_size
    wait_for(lambda: metrics.stat().st_size > size, every=LOOK_SECONDS)
