"""/v1/fine_tuning/queue: why jobs wait, until when, and what the workers have free. Ours."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from api.auth import CallerOf
from api.lists import After, Item, Limit, ListOf, list_of
from api.services import ServicesOf
from control_plane import queue
from control_plane.job_requests import priority_name
from control_plane.job_states import State
from control_plane.queue import Place, Reason, Waiting

router = APIRouter(prefix="/v1/fine_tuning/queue", tags=["fine-tuning"])


class WaitingJob(Item):
    object: Literal["fine_tuning.queue.job"] = "fine_tuning.queue.job"
    created_at: int
    state: State
    priority: str
    preemptible: bool
    gpus: int
    reason: Reason
    """Why it waits, as a word that stays the same."""
    message: str
    """The same in words."""
    until: int | None
    """Unix second at which that ends at the earliest; null where nobody can say."""


class GpuOut(BaseModel):
    gpu: str
    """Its UUID."""
    reason: str
    """As `busy (pid 4711, 3.2 GiB)`."""


class WorkerObject(BaseModel):
    id: str
    object: Literal["worker"] = "worker"
    device: str
    slots: int
    """GPUs, or CPU processes that stand for them."""
    usable: int
    """Those of them that may be used now."""
    free: int
    """Those that nothing runs on; none while it is draining or silent."""
    last_seen: int
    """Unix second at which it was last heard of."""
    silent: bool
    """Whether that is so long ago that it may be gone. After a minute it is not listed any more."""
    draining: bool
    """Whether it takes no more work: it stops and hands its jobs back, or its disk is full, or its storage is away."""
    out: list[GpuOut]
    """GPUs that it must not use, and why."""


class QueueObject(ListOf[WaitingJob]):
    workers: list[WorkerObject]


@router.get("", summary="Why jobs wait, and until when; and what the workers have free")
def read_queue(services: ServicesOf, caller: CallerOf, after: After = None, limit: Limit = 20) -> QueueObject:
    """The project's jobs that are validated, queued or paused, in the order in which they are taken."""
    rules = {"project_gpus": services.limits.gpus, "max_attempts": services.settings.max_attempts}
    with services.database.transaction() as session:
        found = queue.read(session, caller.project_id, **rules, after=after, limit=limit)
        jobs = list_of([_waiting_job(waiting) for waiting in found.waiting], found.has_more)
        return QueueObject(**jobs.model_dump(), workers=[_worker(place) for place in found.places])


def _waiting_job(waiting: Waiting) -> WaitingJob:
    job = waiting.job
    return WaitingJob(
        id=job.id,
        created_at=int(job.created_at.timestamp()),
        state=State(job.state),
        priority=priority_name(job.priority),
        preemptible=job.preemptible,
        gpus=job.gpus,
        reason=waiting.reason,
        message=waiting.message,
        until=int(waiting.until.timestamp()) if waiting.until is not None else None,
    )


def _worker(place: Place) -> WorkerObject:
    worker = place.worker
    return WorkerObject(
        id=worker.id,
        device=worker.device,
        slots=worker.slots,
        usable=place.usable,
        free=place.free,
        last_seen=int(worker.last_seen.timestamp()),
        silent=place.silent_for is not None,
        draining=worker.draining,
        out=[GpuOut(gpu=gpu, reason=reason) for gpu, reason in sorted(worker.out.items())],
    )
