"""An attempt at a job: validates it or trains it. What it publishes on the way goes to storage on the pool."""

from __future__ import annotations

import json

from sqlalchemy.orm import Session

from control_plane import leases, results
from control_plane.leases import Claim
from dpo_core.run_directory import DISK_FULL, Failure
from worker.inputs import collect
from worker.publish import Publisher
from worker.reference_shards import ReferenceShards
from worker.relay import Relay
from worker.room import more_than
from worker.run_log import RunLog
from worker.token_tables import TokenTables
from worker.verdict import Ending
from worker.work import Tools, Work


class Attempt(Work):
    def __init__(self, tools: Tools, claim: Claim, claimed_at: float) -> None:
        super().__init__(
            tools,
            row_id=claim.job_id,
            fence=claim.fence,
            kind=claim.kind,
            gpus=claim.gpus,
            lease_seconds=claim.lease_seconds,
            claimed_at=claimed_at,
        )
        self._claim = claim
        self._still_to_write = 0
        self._relayed = Relay(tools.database, claim, self._run)
        self._log = RunLog(tools.storage, claim.job_id, claim.fence, self._run)
        limit = tools.settings.reference_cache_bytes
        self._shards = ReferenceShards(tools.database, tools.storage, claim, self._run, limit=limit)
        limit = tools.settings.token_cache_bytes
        self._tables = TokenTables(tools.database, tools.storage, claim, self._run, limit=limit)
        self._publisher = Publisher(
            tools.database,
            tools.storage,
            tools.pool,
            claim,
            self._run,
            relay=self._relayed,
            shards=self._shards,
            tables=self._tables,
            log=self._log,
        )

    def _fetch(self) -> None:
        with self._tools.database.transaction() as session:
            order = results.work_order(session, self._claim)
        self._still_to_write = order.still_to_write
        self._tools.room.require(order.still_to_write)
        known = self._shards.fetch(order)
        storage, device = self._tools.storage, self._tools.slots.device
        spec = collect(storage, order, self._claim, self._run, device, reference_cache=known)
        self._tables.fetch(order, spec)
        self._run.create(spec)

    def _beat(self, session: Session) -> None:
        """One transaction, as both come every few seconds."""
        if leases.renew(session, self._claim):
            self.stop(self._tools.settings.stop_seconds)
        self._relayed.store(session)

    def _relay(self) -> None:
        self._relayed.relay()

    def _publish(self) -> bool:
        self._log.bound()
        return self._publisher.advance()

    def _report(self, session: Session, ending: Ending) -> None:
        if isinstance(ending, Failure):
            settings = self._tools.settings
            results.fail(
                session,
                self._claim,
                ending,
                max_attempts=settings.max_attempts,
                retry_seconds=settings.retry_seconds,
                needs_bytes=self._needs_bytes() if ending.code == DISK_FULL else 0,
                begun=self.begun,
            )
        elif ending == "stopped":
            results.hand_back(session, self._claim)
        elif self._claim.kind == "validate":
            results.finish_validation(session, self._claim, json.loads(self._run.prepared_file.read_bytes()))
        else:
            results.succeed(session, self._claim)

    def _needs_bytes(self) -> int:
        """Of room to go on, after there was none."""
        if self._process is None and self._still_to_write:  # it was not begun
            return self._still_to_write
        return more_than(self._room_at_end, self._run.path, self._still_to_write)

    @property
    def _busy(self) -> bool:
        return super()._busy or self._publisher.busy

    def _clear(self) -> None:
        """The log outlives its run directory, in storage."""
        self._log.keep_last(self._tools.database)
        super()._clear()
