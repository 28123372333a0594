"""What supervision costs a training step, measured within one run.

While a job trains, everything of the service but its trainers is stopped (SIGSTOP) and continued in turn, and the steps
meanwhile are compared, pair by pair of neighbouring windows: what a host does besides changes over minutes, and two
runs after each other would mostly show that. Every step computes the same: all pairs have the same lengths. What is due
while the service stands still is done once it goes on, so that steps beside it bear more than their share.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from benchmarks.service import ATTEMPT_OF_TRAINING, Service, wait_for
from dpo_core.run_directory import RunDirectory

WARM_UP_STEPS = 3
NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True)
class Window:
    begin: float
    end: float
    """Seconds since 1970."""
    supervised: bool


@dataclass(frozen=True, slots=True)
class Step:
    number: int
    begin: float
    end: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Supervision:
    supervised: float
    alone: float
    """Seconds a step, the mean over windows."""
    cost: float
    """The mean over pairs of windows of supervised ÷ alone − 1."""
    give_or_take: float
    """Half of the cost's 95 % confidence interval."""
    steps: int
    pairs: int
    service_cpu_share: float
    """CPU time of the service ÷ wall clock, over all windows."""


def measure(served: Service, request: dict[str, Any], pairs: int, seconds: float) -> Supervision:
    """Trains until `pairs` pairs of windows of `seconds` are over, then cancels the job, which must be long enough."""
    job_id = served.submit(request)
    run = RunDirectory(served.runs / job_id / str(ATTEMPT_OF_TRAINING))
    wait_for(run.metrics_file.exists)
    with open(run.metrics_file, encoding="utf-8") as metrics:  # outlives its name, which goes with the run directory
        wait_for(lambda: run.metrics_file.read_text().count('"split": "train"') > WARM_UP_STEPS)
        began, spent = time.time(), -served.cpu_seconds()
        windows = alternate(served, pairs, seconds)
        spent += served.cpu_seconds()
        took = time.time() - began
        served.cancel(job_id)
        written = steps_of(metrics.read())
    every = request["training"]["checkpoint_steps"]
    # A trainer makes its checkpoint with or without the service; in one window of a pair it would tip the scales.
    kept = [step for step in written if step.number % every not in (0, 1)]
    return compare(kept, windows, spent / took)


def alternate(served: Service, pairs: int, seconds: float) -> list[Window]:
    """Each pair's order is the other way round than the last one's: a host that slows down evenly favours neither."""
    windows = []
    for number in range(2 * pairs):
        begin = time.time()
        if supervised := number % 4 in (1, 2):
            time.sleep(seconds)
        else:
            with served.stopped():
                time.sleep(seconds)
        windows.append(Window(begin, time.time(), supervised))
    return windows


def compare(steps: Iterable[Step], windows: list[Window], service_cpu_share: float) -> Supervision:
    """Steps count in the window that holds them whole; pairs of windows with none on one side are left out."""
    inside: list[list[float]] = [[] for _ in windows]
    for step in steps:
        for window, durations in zip(windows, inside, strict=True):
            if window.begin <= step.begin and step.end <= window.end:
                durations.append(step.end - step.begin)
    compared: list[tuple[float, float]] = []
    for first in range(0, len(windows), 2):
        both = {windows[index].supervised: inside[index] for index in (first, first + 1)}
        if both[True] and both[False]:
            compared.append((mean(both[True]), mean(both[False])))
    if len(compared) < 2:
        raise RuntimeError(f"Only {len(compared)} pairs of windows hold whole steps: make windows longer, or more.")
    costs = [supervised / alone - 1 for supervised, alone in compared]
    return Supervision(
        supervised=mean(supervised for supervised, _ in compared),
        alone=mean(alone for _, alone in compared),
        cost=mean(costs),
        give_or_take=NORMAL_95 * stdev(costs) / math.sqrt(len(costs)),
        steps=sum(map(len, inside)),
        pairs=len(compared),
        service_cpu_share=service_cpu_share,
    )


def steps_of(lines: str) -> list[Step]:
    """The steps of `metrics.jsonl` but the first, from the end of the one before to their own."""
    records = [json.loads(line) for line in lines.splitlines()]
    train = [record for record in records if record["split"] == "train"]
    return [Step(later["step"], earlier["time"], later["time"]) for earlier, later in pairwise(train)]
