"""What must hold of jobs, whoever does what to them in whatever order: the service's promises, written anew.

They are told from what is committed, before and after each commit, and from who committed; nothing here asks the
service's own code what is right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from tests.model.seen import Job, Jobs

FINAL = ("succeeded", "failed", "cancelled")
LEASED = ("running", "pausing")

MOVES = {
    ("validating", "queued"): "worker",
    ("validating", "failed"): "worker reconciler finder",
    ("validating", "cancelled"): "client",
    ("queued", "running"): "worker",
    ("queued", "paused"): "client",
    ("queued", "cancelled"): "client",
    ("running", "queued"): "worker reconciler finder",
    ("running", "pausing"): "client",
    ("running", "succeeded"): "worker",
    ("running", "failed"): "worker reconciler finder",
    ("running", "cancelled"): "client",
    ("pausing", "paused"): "worker reconciler finder",
    ("pausing", "succeeded"): "worker",
    ("pausing", "failed"): "worker reconciler finder",
    ("pausing", "cancelled"): "client",
    ("paused", "queued"): "client",
    ("paused", "cancelled"): "client",
}
"""docs/job_states.md: from, to, and who may."""

TOLD_BY = {
    "running": {"job_started"},
    "pausing": {"job_pausing"},
    "paused": {"job_paused", "worker_lost", "trainer_died"},
    "queued": {"files_validated", "handed_back", "job_resumed", "worker_lost", "trainer_died"},
    "succeeded": {"job_succeeded"},
    "failed": {"worker_lost", "trainer_died", "bad_data"},
    "cancelled": {"job_cancelled"},
}
"""The codes of the events that tell of a move, by the state that it leads to."""


class Broken(AssertionError):
    """A promise was not kept."""


@dataclass(frozen=True)
class Change:
    """One commit: who made it, and what everybody saw before and after."""

    who: str
    """client, worker, reconciler, or finder: of what a dead worker left."""
    fence: int | None
    """The claim in whose name a worker wrote, or that a finder ends; None for a claim itself, and for others."""
    job_id: str | None
    """That claim's job."""
    now: float
    """By the injected clock."""
    lease_seconds: float
    before: Jobs
    after: Jobs

    def is_by_the_holder(self, was: Job) -> bool:
        return self.who == "worker" and self._of_the_lease(was)

    def is_behind_the_holder(self, was: Job) -> bool:
        return self.who == "finder" and self._of_the_lease(was)

    def _of_the_lease(self, was: Job) -> bool:
        return self.job_id == was.id and self.fence == was.fence and was.lease_until is not None


def promise(kept: bool, what: str, job: Job) -> None:
    if not kept:
        raise Broken(f"{what}: {job}")


# -- what a commit may change ----------------------------------------------------------------------------


def only_legal_moves(change: Change, was: Job, is_: Job) -> None:
    if was.state != is_.state:
        who = MOVES.get((was.state, is_.state), "")
        promise(change.who in who.split(), f"{was.state} became {is_.state} by a {change.who}", is_)


def an_event_for_every_move(change: Change, was: Job, is_: Job) -> None:
    if was.state != is_.state:
        told = {event["code"] for event in is_.events[len(was.events) :]}
        promise(bool(told & TOLD_BY[is_.state]), f"no event tells that {was.state} became {is_.state}", is_)


def fences_rise_with_claims_and_cancels(change: Change, was: Job, is_: Job) -> None:
    taken = was.lease_until is None and is_.lease_until is not None
    expected = was.fence + (taken or (is_.state == "cancelled" and was.state != "cancelled"))
    promise(is_.fence == expected, f"the fence went from {was.fence} to {is_.fence}", is_)


def only_the_holder_writes(change: Change, was: Job, is_: Job) -> None:
    """What a worker reports of an attempt counts only while the attempt is the job's, and holds its lease."""
    if change.who == "worker" and change.fence is not None and was != is_:
        promise(change.is_by_the_holder(was), f"attempt {change.fence} of {change.job_id} wrote", was)


def who_finds_a_dead_worker_ends_its_attempt_and_no_other(change: Change, was: Job, is_: Job) -> None:
    if change.who == "finder" and was != is_:
        promise(change.is_behind_the_holder(was), f"attempt {change.fence} of {change.job_id} was ended", was)
        outcome = is_.attempts[was.fence]["outcome"]
        promise(outcome == "lost", f"attempt {was.fence}, whose worker died, is {outcome}", is_)
        promise(is_.lease_until is None, f"attempt {was.fence}, whose worker died, has a lease", is_)


def leases_end_by_the_clock(change: Change, was: Job, is_: Job) -> None:
    """Only its holder, whoever found that holder dead, or the owner's cancel ends a lease early."""
    if was.lease_until is not None and was.lease_until >= change.now and is_.lease_until is None:
        by_right = change.is_by_the_holder(was) or change.is_behind_the_holder(was) or is_.state == "cancelled"
        promise(by_right, f"a lease until {was.lease_until} was ended at {change.now}", is_)


def leases_are_set_by_the_clock(change: Change, was: Job, is_: Job) -> None:
    if is_.lease_until is not None and is_.lease_until != was.lease_until:
        latest = change.now + change.lease_seconds
        promise(is_.lease_until <= latest, f"a lease was set until {is_.lease_until}, and it is {change.now}", is_)


def published_once_and_by_the_holder(change: Change, was: Job, is_: Job) -> None:
    announced = [event["data"]["step"] for event in is_.events[len(was.events) :] if _publishes(event)]
    for step in {*announced, *_changed(was.checkpoints, is_.checkpoints)}:
        # `state_kept` falls when a later state is durable, or the job is over.
        old, new = was.checkpoints.get(step), is_.checkpoints[step]
        if old is not None and step not in announced and old | {"state_kept": False} == new:
            continue
        promise(announced.count(step) == 1, f"step {step} was announced {announced.count(step)} times", is_)
        promise(change.is_by_the_holder(was), f"step {step} was published by somebody else", was)
        promise(new["fence"] == change.fence, f"step {step} was published under another fence", is_)
        promise(old is None or old["fence"] < new["fence"], f"step {step} was published twice by one attempt", is_)


def measured_by_the_holder(change: Change, was: Job, is_: Job) -> None:
    for step in _changed(was.metrics, is_.metrics):
        right = change.is_by_the_holder(was) and is_.metrics[step] == change.fence
        promise(right, f"step {step} was measured by somebody else", is_)


def over_is_over(change: Change, was: Job, is_: Job) -> None:
    if was.state in FINAL:
        promise(was == is_, "a job that was over has changed", is_)


def _publishes(event: dict[str, object]) -> bool:
    return event["code"] == "checkpoint_created"


def _changed(was: dict[int, object], is_: dict[int, object]) -> set[int]:
    return {key for key in was.keys() | is_.keys() if was.get(key) != is_.get(key)}


OF_CHANGES: tuple[Callable[[Change, Job, Job], None], ...] = (
    only_legal_moves,
    an_event_for_every_move,
    fences_rise_with_claims_and_cancels,
    only_the_holder_writes,
    who_finds_a_dead_worker_ends_its_attempt_and_no_other,
    leases_end_by_the_clock,
    leases_are_set_by_the_clock,
    published_once_and_by_the_holder,
    measured_by_the_holder,
    over_is_over,
)


# -- what holds after every commit -----------------------------------------------------------------------


def one_owner(job: Job) -> None:
    """A lease and an open attempt come and go together; the open attempt is the newest."""
    unfinished = [fence for fence, attempt in job.attempts.items() if attempt["open"]]
    promise(unfinished == ([job.fence] if job.lease_until is not None else []), f"open attempts: {unfinished}", job)
    if job.state in LEASED:
        promise(job.lease_until is not None, f"{job.state} without a lease", job)
    elif job.state != "validating":
        promise(job.lease_until is None, f"{job.state} with a lease", job)


def ends_are_right(job: Job) -> None:
    last = job.attempts[max(job.attempts)]["outcome"] if job.attempts else None
    if job.state == "succeeded":
        promise(last == "succeeded", f"succeeded, though its last attempt was {last}", job)
        promise(job.result_name in job.models, "succeeded without a result", job)
        result = job.models[job.result_name]
        promise(result["step"] == max(job.checkpoints), "the result is not its last checkpoint", job)
    if job.state == "failed":
        promise(last in ("failed", "lost"), f"failed, though its last attempt was {last}", job)


def metrics_are_complete(job: Job) -> None:
    promise(sorted(job.metrics) == list(range(1, len(job.metrics) + 1)), f"steps: {sorted(job.metrics)}", job)
    promise(max(job.checkpoints, default=0) <= len(job.metrics), "a checkpoint lies beyond the metrics", job)


def published_models_are_there(job: Job) -> None:
    for step, checkpoint in job.checkpoints.items():
        model = job.models.get(f"{job.result_name}-step-{step}")
        right = model is not None and model["storage_prefix"] == checkpoint["storage_prefix"]
        promise(right, f"the model of step {step} is not its checkpoint's", job)


OF_JOBS: tuple[Callable[[Job], None], ...] = (
    one_owner,
    ends_are_right,
    metrics_are_complete,
    published_models_are_there,
)


def check(change: Change) -> None:
    """Raises Broken."""
    for job_id, was in change.before.items():
        if job_id not in change.after:
            raise Broken(f"the job {job_id} is gone")
        if was == change.after[job_id]:
            continue
        for law in OF_CHANGES:
            law(change, was, change.after[job_id])
        for rule in OF_JOBS:
            rule(change.after[job_id])
    for job_id in change.after.keys() - change.before.keys():
        promise(change.who == "client" and change.after[job_id].state == "validating", "made", change.after[job_id])


def one_job_a_request(jobs: Jobs, window: float) -> None:
    """Without an Idempotency-Key a request is known again for `window` seconds."""
    for earlier, later in combinations(sorted(jobs.values(), key=lambda job: job.created_at), 2):
        same = earlier.request == later.request and later.created_at - earlier.created_at < window
        promise(not same, f"one request made several jobs, after {earlier.id} also", later)


def within_the_limit(jobs: Jobs, gpus: int) -> None:
    used = sum(job.gpus for job in jobs.values() if job.state in LEASED)
    if used > gpus:
        raise Broken(f"the project uses {used} GPUs of {gpus}")


def bytes_are_there(jobs: Jobs, stored: set[str]) -> None:
    """What is shown can be read; what is to be gone on from, too."""
    for job in jobs.values():
        for checkpoint in job.checkpoints.values():
            promise(checkpoint["storage_prefix"] in stored, "a published model's bytes are gone", job)
            state = f"private/{job.id}/{checkpoint['fence']}/step-{checkpoint['step']}"
            promise(not checkpoint["state_kept"] or state in stored, f"{state} is gone", job)
