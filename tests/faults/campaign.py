"""Plays faults one after another, checks what holds after each, and writes it down."""

from __future__ import annotations

import random
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from tests.faults.deployment import Deployment, Trainer
from tests.faults.fault import Fault
from tests.faults.invariants import broken, unsettled
from tests.faults.journal import Journal, Line
from tests.faults.scene import Missed
from tests.faults.stages import stage

POINTS: dict[Trainer, tuple[int, int]] = {"stub": (10, 1), "real": (1, 5)}
"""Jobs, and strikes in each: the real trainer takes long to start, so that one job is struck five times."""


@dataclass(frozen=True)
class Plan:
    """One play."""

    fault: Fault
    trainer: Trainer
    number: int
    strikes: int


def plans(faults: Sequence[Fault], trainers: Sequence[Trainer], points: dict[Trainer, tuple[int, int]]) -> list[Plan]:
    return [
        Plan(fault, trainer, number, fault.strikes or points[trainer][1])
        for trainer in trainers
        for fault in faults
        if trainer in fault.trainers
        for number in range(1 if fault.once else points[trainer][0])
    ]


def perform(wanted: Sequence[Plan], seed: int, journal: Journal) -> None:
    """All that the journal has no good end of. After a loss the rest goes on with a new deployment."""
    done = journal.played()
    left = [plan for plan in wanted if (plan.fault.name, plan.trainer, plan.number) not in done]
    for plan in [plan for plan in left if plan.fault.lacks()]:
        left.remove(plan)
        journal.add(Line(plan.fault.name, plan.trainer, plan.number, "skipped", why=[plan.fault.lacks() or ""]))
    left.sort(key=lambda plan: (plan.trainer != "stub", plan.fault.stage))
    for (_, name), of_stage in groupby(left, key=lambda plan: (plan.trainer, plan.fault.stage)):
        todo = list(of_stage)
        while todo:
            with stage(name, todo[0].trainer) as deployment:
                _until_a_loss(deployment, todo, seed, journal)


def _until_a_loss(deployment: Deployment, todo: list[Plan], seed: int, journal: Journal) -> None:
    while todo:
        plan = todo.pop(0)
        try:
            line = play(deployment, plan, seed)
        except Missed as missed:
            say(f"{plan.fault.name} ({plan.trainer}) {plan.number + 1}: to be played again; {missed}")
            continue
        last_of_its_kind = not todo or todo[0].fault is not plan.fault
        if line.outcome == "survived" and last_of_its_kind and (left := unsettled(deployment)):
            line = replace(line, outcome="lost", why=left)
        journal.add(line)
        say(
            f"{plan.fault.name} ({plan.trainer}) {plan.number + 1}: {line.outcome}, {line.seconds:.0f} s; {_told(line)}"
        )
        if line.outcome == "lost":
            deployment.lost = True
            say(f"logs of it: {journal.keep_logs(line, deployment.data / 'logs')}")
            return


def play(deployment: Deployment, plan: Plan, seed: int) -> Line:
    """One play and what was broken by it. The seed tells its moments. Missed where the fault came too late."""
    fault, begun = plan.fault, time.monotonic()
    line = Line(fault.name, plan.trainer, plan.number, "survived", strikes=plan.strikes)
    try:
        played = fault.play(
            deployment, random.Random(f"{seed} {fault.name} {plan.trainer} {plan.number}"), plan.strikes
        )
        line = replace(
            line,
            strikes=len(played.recoveries) if played.strikes is None else played.strikes,
            recoveries=played.recoveries,
            moments=played.moments,
        )
        why: list[str] = []
        for job_id in (*played.jobs, *played.doomed):
            deployment.over(job_id)
            succeeds = job_id not in played.doomed
            why += broken(deployment, job_id, succeeds=succeeds, times=not fault.sets_clock)
    except Missed:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the journal has to tell of it
        last = traceback.extract_tb(error.__traceback__)[-1]
        why = [f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"]
    return replace(line, outcome="lost" if why else "survived", why=why, seconds=time.monotonic() - begun)


def survive(deployment: Deployment, plan: Plan, seed: int) -> None:
    """One play in a test: nothing may be broken by it, and nothing may be left."""
    line = play(deployment, plan, seed)
    deployment.lost = deployment.lost or bool(line.why)
    assert not line.why, f"{plan.fault.name} at {line.moments} broke something: {line.why}"
    left = unsettled(deployment)
    assert not left, f"{plan.fault.name} at {line.moments} left something: {left}"


def _told(line: Line) -> str:
    recoveries = ", ".join(f"{seconds:.1f}" for seconds in line.recoveries)
    return "; ".join([*line.moments, *([f"recovery {recoveries} s"] if recoveries else []), *line.why])


def say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()
