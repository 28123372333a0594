"""Reference log-probabilities that a project's jobs share: which shards there are, and which go for want of room.

A shard is a file of values (dpo_core/reference_cache.py) that one attempt measured, at
`private/reference/{project}/{group}/{job}-{fence}-{n}.safetensors`. The group says under which model, arithmetic and
software they were measured. Projects share nothing: how quickly a job starts would tell one what another has.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from control_plane import cached, events, leases
from control_plane.database import dpo_now
from control_plane.leases import Claim
from control_plane.storage import reference_prefix
from control_plane.tables import Job, ReferenceShard


def shard_key(claim: Claim, group: str, name: str) -> str:
    """Where this attempt's shard `name` lies: never where another one was, which may be about to go."""
    return f"{reference_prefix(claim.project_id, group)}/{claim.job_id}-{claim.fence}-{name}"


def take(session: Session, job: Job) -> list[ReferenceShard]:
    """What the job's project knows under its reference; counts as used now."""
    if job.reference_group is None:
        return []
    cached.lock(session, job.project_id)
    mine = (ReferenceShard.project_id == job.project_id) & (ReferenceShard.group == job.reference_group)
    session.execute(update(ReferenceShard).where(mine).values(last_used_at=dpo_now()))
    return list(session.scalars(select(ReferenceShard).where(mine).order_by(ReferenceShard.key)))


def store(session: Session, claim: Claim, *, key: str, group: str, size: int, sha256: str, limit: int) -> None:
    """Makes a shard in storage known. What its project has used least recently goes, down to `limit` bytes in all.

    Raises:
        StaleFence: the job is no longer this claim's; nothing is stored.
    """
    job = leases.held(session, claim)
    cached.lock(session, job.project_id)
    shard = {"project_id": job.project_id, "job_id": job.id, "group": group, "bytes": size, "sha256": sha256}
    session.merge(ReferenceShard(key=key, **shard))
    session.flush()
    cached.evict(session, ReferenceShard, job.project_id, limit)


def complete(session: Session, claim: Claim) -> None:
    """All that the job needs was measured and stored: jobs of its sweep that wait for it may begin.

    Raises:
        StaleFence: the job is no longer this claim's; nothing changes.
    """
    leases.held(session, claim).reference_measured = True


def forget_job(session: Session, job: Job) -> None:
    """No log-probability that was measured of a deleted file outlives it."""
    cached.lock(session, job.project_id)
    cached.forget(
        session, ReferenceShard, session.scalars(select(ReferenceShard.key).where(ReferenceShard.job_id == job.id))
    )


def drop(session: Session, claim: Claim, shards: Iterable[ReferenceShard]) -> None:
    """Forgets shards that can't be read. The job measures their values again, and an event says so.

    Raises:
        StaleFence: the job is no longer this claim's; nothing changes.
    """
    job = leases.held(session, claim)
    keys = [shard.key for shard in shards]
    cached.lock(session, job.project_id)
    known = session.scalars(select(ReferenceShard.key).where(ReferenceShard.key.in_(keys)))
    cached.forget(session, ReferenceShard, known)
    message = (
        f"Cached reference log-probabilities could not be read ({len(keys)} damaged or missing in storage); "
        "they are measured again."
    )
    events.add(session, job, code="reference_cache_damaged", message=message, level="warn", data={"shards": len(keys)})
