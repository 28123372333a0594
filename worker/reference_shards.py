"""Reference log-probabilities between storage and a run directory: fetched before it starts, kept as they appear.

They only save time. Shards that are damaged or gone are measured again; shards that storage refuses are not kept.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy.orm import Session

from control_plane import reference_cache
from control_plane.database import Database
from control_plane.leases import Claim
from control_plane.results import WorkOrder
from control_plane.storage import Storage
from control_plane.tables import ReferenceShard
from dpo_core.run_directory import RunDirectory, sha256_of
from worker import cached_objects
from worker.cached_objects import Found

logger = logging.getLogger(__name__)


class ReferenceShards:
    """Those of one attempt. `limit`: bytes that a project's shards may take in storage."""

    def __init__(self, database: Database, storage: Storage, claim: Claim, run: RunDirectory, *, limit: int) -> None:
        self._database = database
        self._storage = storage
        self._claim = claim
        self._run = run
        self._limit = limit
        self._done: set[Path] = set()
        self._completed = False

    def fetch(self, order: WorkOrder) -> Path | None:
        """Brings what the project knows under the job's reference below `input/`; None if nothing is to be looked for.

        Raises:
            StaleFence: the job is no longer ours.
        """
        if self._claim.kind == "validate" or order.checkpoint is not None:
            return None  # a checkpoint carries its run's own values
        with self._database.transaction() as session:
            shards = reference_cache.take(session, order.job)
        folder = self._run.path / "input" / "reference-cache"
        found = [self._fetch(shard, folder) for shard in shards]
        damaged = [shard for shard, it in zip(shards, found, strict=True) if it == "damaged"]
        if damaged:
            logger.warning("%s: %d cached reference shards are damaged or gone", self._claim.job_id, len(damaged))
            with self._database.transaction() as session:
                reference_cache.drop(session, self._claim, damaged)
        return folder if "here" in found else None

    @property
    def to_complete(self) -> bool:
        """Whether the trainer has all values, and PostgreSQL doesn't know yet. Shards that wait still go first."""
        if self._completed or self._claim.kind == "validate":
            return False
        status = self._run.status()
        return status is not None and status.total_steps is not None  # known once training begins

    def waiting(self) -> list[Path]:
        """Shards that the trainer has written and that are not in storage yet, oldest first."""
        if not self._limit:
            return []
        return [path for path in self._run.reference_shards() if path not in self._done]

    def publish(self, path: Path) -> None:
        """Puts a shard into storage, then makes it known.

        Raises:
            StaleFence: the job is no longer ours; nothing is made known.
        """
        group = path.parent.name
        key = reference_cache.shard_key(self._claim, group, path.name)
        size, sha256 = path.stat().st_size, sha256_of(path)

        def make_known(session: Session) -> None:
            reference_cache.store(
                session, self._claim, key=key, group=group, size=size, sha256=sha256, limit=self._limit
            )

        cached_objects.keep(self._database, self._storage, key, path, make_known)
        self._done.add(path)

    def complete(self) -> None:
        """Makes known that the job's reference is measured, for the jobs of its sweep.

        Raises:
            StaleFence: the job is no longer ours; nothing is made known.
        """
        with self._database.transaction() as session:
            reference_cache.complete(session, self._claim)
        self._completed = True

    def _fetch(self, shard: ReferenceShard, folder: Path) -> Found:
        """Into `folder`, where the trainer looks for it."""
        path = folder / shard.group / shard.key.rpartition("/")[2]
        return cached_objects.fetch(self._storage, shard.key, shard.sha256, path)
