"""Why a project's jobs wait, and until when: what control_plane/line.py decides, in words.

What is said is what PostgreSQL knows now. A worker that has just begun or ended something is heard of with its next
heartbeat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from control_plane import line, quotas, workers
from control_plane.attempts import LONGEST_WAIT
from control_plane.database import dpo_now
from control_plane.job_states import State
from control_plane.pages import paginate
from control_plane.progress import estimated_finish
from control_plane.tables import Job, Project, Worker
from dpo_core.footprint import in_bytes


class Reason(StrEnum):
    paused = "paused"
    being_read = "being_read"
    resting = "resting"
    disk_full = "disk_full"
    sweep = "sweep"
    no_worker = "no_worker"
    readers_busy = "readers_busy"
    too_large = "too_large"
    project_limit = "project_limit"
    room_is_made = "room_is_made"
    no_slots_free = "no_slots_free"
    kept_apart = "kept_apart"
    behind_a_large_job = "behind_a_large_job"
    next = "next"


@dataclass(frozen=True)
class Waiting:
    """A job that waits, and why."""

    job: Job
    reason: Reason
    message: str
    until: datetime | None
    """When that ends at the earliest; None where nobody can say."""


@dataclass(frozen=True)
class Place:
    """A worker, and what stands free on it now."""

    worker: Worker
    silent_for: timedelta | None
    """For how long it was not heard of, if that is too long to count on it."""
    usable: int
    free: int
    running: list[Job]
    kept_for: Row[Any] | None
    """The job, of those that line.first_ones names, that its slots are kept for: behind that it takes nothing."""


@dataclass(frozen=True)
class Queue:
    waiting: list[Waiting]
    """In the order of the line: the project's next job first."""
    has_more: bool
    places: list[Place]


def read(
    session: Session,
    project_id: str,
    *,
    project_gpus: int | None,
    max_attempts: int | None = None,
    after: str | None = None,
    limit: int = 20,
) -> Queue:
    """The project's waiting jobs, with reasons. `project_gpus` and `max_attempts`: as for leases.claim."""
    states = (State.validating, State.queued, State.paused)
    query = select(Job).where(Job.project_id == project_id, Job.state.in_(states))
    order = (-Job.priority, Job.created_at, Job.id)
    page = paginate(session, query, item_id=Job.id, order=order, after=after, limit=limit, newest_first=False)
    scene = _Scene(session, project_id, project_gpus, line.last_chance(max_attempts))
    return Queue([scene.why(job) for job in page.items], page.has_more, scene.places)


class _Scene:
    """What all the reasons of an answer are made from, read once."""

    def __init__(self, session: Session, project_id: str, project_gpus: int | None, last_chance: int) -> None:
        self._now = session.scalars(dpo_now().select()).one()
        self._project_id = project_id
        self._last_chance = last_chance
        on_last = select(Job.worker_id).where(Job.lease_until.is_not(None), Job.fruitless_attempts >= last_chance)
        self._with_last_chance = set(session.scalars(on_last))
        """Ids of workers."""
        self._running = session.scalars(
            select(Job).where(Job.lease_until.is_not(None), Job.state.in_(quotas.ON_GPUS))
        ).all()
        self._heads = session.execute(select(line.first_ones(project_gpus))).all()
        self._limit = quotas.gpu_limit(session.get_one(Project, project_id), project_gpus)
        self.places = [self._place(worker) for worker in workers.present(session)]
        self._taking = [it for it in self.places if not it.worker.draining and it.silent_for is None]
        self._silent = [it for it in self.places if not it.worker.draining and it.silent_for is not None]

    def why(self, job: Job) -> Waiting:
        reason, message, until = next(self._reasons(job))
        return Waiting(job, reason, message, max(until, self._now) if until is not None else None)

    def _reasons(self, job: Job) -> Iterator[tuple[Reason, str, datetime | None]]:
        """The first one is the one that holds the job up."""
        yield from self._of_its_own(job)
        if not self._taking:
            yield Reason.no_worker, "There is no worker that takes work." + self._last_word(), None
        if not any(self._takes(place.worker, job) for place in self._taking):
            count = f"{job.fruitless_attempts} attempts" if job.fruitless_attempts > 1 else "attempt"
            message = (
                f"Its last {count} brought it no further and it has one left, and so it is with a job on every worker: "
                "none takes two of them, as one may be what ends the other's attempts."
            )
            yield Reason.kept_apart, message, None
        if job.state == State.validating:
            yield Reason.readers_busy, "A worker will read its data; other jobs' data is read first.", None
        yield from self._of_room(job)
        yield from self._of_the_line(job)

    def _of_its_own(self, job: Job) -> Iterator[tuple[Reason, str, datetime | None]]:
        if job.state == State.paused:
            yield Reason.paused, "It was paused, and goes on when it is resumed.", None
        if job.lease_until is not None:
            yield Reason.being_read, "A worker reads its data.", None
        if job.not_before is not None and self._now < job.not_before <= self._now + timedelta(seconds=LONGEST_WAIT):
            yield Reason.resting, _at_rest(job), job.not_before
        if job.needs_bytes is not None:
            room = in_bytes(job.needs_bytes)
            yield Reason.disk_full, f"A disk was full; it goes on by itself once a worker has {room} of room.", None
        if job.waits_for is not None:
            first = "reads the files" if job.state == State.validating else "measures the reference"
            yield Reason.sweep, f"Job {job.waits_for} of its sweep {first} for both.", None

    def _of_room(self, job: Job) -> Iterator[tuple[Reason, str, datetime | None]]:
        largest = max((place.usable for place in self._taking), default=0)
        if largest < job.gpus <= max((place.usable for place in self._silent), default=0):
            message = f"It needs {job.gpus} slots, and no worker that is there has so many." + self._last_word()
            yield Reason.no_worker, message, None
        if job.gpus > largest:
            out = sum(len(place.worker.out) for place in self._taking)
            are_out = f" {out} GPUs are out, see the workers." if out else ""
            message = (
                f"It needs {job.gpus} slots (GPUs, or CPU processes), and no worker has more than {largest}.{are_out}"
            )
            yield Reason.too_large, message, None
        mine = [one for one in self._running if one.project_id == self._project_id]
        held = sum(one.gpus for one in mine)
        if self._limit is not None and held + job.gpus > self._limit:
            message = f"Its project may use {self._limit} GPUs at once and uses {held}; this job needs {job.gpus}."
            yield Reason.project_limit, message, _comes_free(mine, self._limit - held, job.gpus)
        if any(one.yields_to == job.id for one in self._running):
            yield Reason.room_is_made, "Preemptible jobs make their checkpoints, and then room for it.", None
        taking = [place for place in self._taking if self._takes(place.worker, job)]
        free = max((place.free for place in taking), default=0)
        if job.gpus > free:
            times = [moment for place in taking if (moment := _comes_free(place.running, place.free, job.gpus))]
            needs = "a free slot" if job.gpus == 1 else f"{job.gpus} free slots on one worker"
            there = {0: "none is", 1: "1 is"}.get(free, f"{free} are")
            yield Reason.no_slots_free, f"It needs {needs}, and {there} free.", min(times, default=None)

    def _of_the_line(self, job: Job) -> Iterator[tuple[Reason, str, datetime | None]]:
        place = (-job.priority, job.created_at, job.id)
        room = [it for it in self._taking if it.free >= job.gpus and self._takes(it.worker, job)]
        kept = [it.kept_for for it in room if it.kept_for is not None and _age(it.kept_for) < place]
        if len(kept) == len(room):
            large = min(kept, key=_age)
            name = f"Job {large.id}" if large.project_id == self._project_id else "A job of another project"
            message = f"{name} needs {large.needs} slots and goes first; those that are free are kept for it."
            yield Reason.behind_a_large_job, message, None
        yield Reason.next, "There is room: a worker takes it, or one before it, within seconds.", None

    def _last_word(self) -> str:
        """What to say of workers that may be gone, or come back."""
        seconds = [place.silent_for.total_seconds() for place in self._silent if place.silent_for is not None]
        if not seconds:
            return ""
        which = "One was" if len(seconds) == 1 else f"{len(seconds)} were"
        return f" {which} not heard of for {min(seconds):.0f} s."

    def _takes(self, worker: Worker, job: Job | Row[Any]) -> bool:
        """Where it has room."""
        return job.fruitless_attempts < self._last_chance or worker.id not in self._with_last_chance

    def _place(self, worker: Worker) -> Place:
        here = [job for job in self._running if job.worker_id == worker.id]
        usable = worker.slots if worker.usable is None else worker.usable
        ago = self._now - worker.last_seen
        silent_for = ago if ago > workers.HEARD else None
        free = 0 if worker.draining or silent_for else max(0, usable - sum(job.gpus for job in here))
        yielding = {job.yields_to for job in here}
        long_ago = self._now - line.PATIENCE
        starving = [
            head
            for head in self._heads
            if free < head.needs <= usable and self._takes(worker, head)
            if head.created_at < long_ago or head.id in yielding
        ]
        return Place(worker, silent_for, usable, free, here, min(starving, key=_age, default=None))


def _age(head: Row[Any]) -> tuple[int, datetime, str]:
    return (-head.priority, head.created_at, head.id)


def _at_rest(job: Job) -> str:
    if not job.fruitless_attempts:
        return "A worker could not begin it, through trouble of its own; another attempt follows after a while."
    count = "Its last attempt" if job.fruitless_attempts == 1 else f"Its last {job.fruitless_attempts} attempts"
    return f"{count} brought it no further; another one follows after a while."


def _comes_free(running: Sequence[Job], free: int, gpus: int) -> datetime | None:
    """When, at the speed of those that run, so many GPUs will be free; None where that can't be said."""
    ends = sorted((finish, job.gpus) for job in running if (finish := estimated_finish(job)) is not None)
    for moment, slots in ends:
        free += slots
        if free >= gpus:
            return moment
    return None
