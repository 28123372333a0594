"""One attempt, from its claim to its end: fetch → run → sweep → publish the rest → report → clear away.

The supervisor calls `tick` often and `beat` at every heartbeat, always from the one thread that also forks.
What may take long (fetching inputs, publishing checkpoints, clearing away) runs on a pool, so that no lease
runs out meanwhile. Whatever takes the lease away leads to `abandon`: kill, report nothing, clear away.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from control_plane import leases, results
from control_plane.database import Database
from control_plane.errors import StaleFence
from control_plane.leases import Claim
from control_plane.settings import Settings
from control_plane.storage import Storage
from dpo_core.run_directory import Failure
from worker.folders import RunFolders
from worker.inputs import collect
from worker.launch import Programs, launch, trainer_environment
from worker.publish import Publisher, log_key
from worker.reference_shards import ReferenceShards
from worker.relay import Relay
from worker.slots import Slots
from worker.sweep import sweep
from worker.verdict import failure_of, how_it_ended

logger = logging.getLogger(__name__)

DATABASE_AWAY = (OperationalError, InterfaceError, PoolTimeoutError)
"""PostgreSQL doesn't answer: tried again until the lease runs out."""
LEASE_MARGIN = 0.2
"""The share of a lease that is left for killing the ranks before somebody else may start."""
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Tools:
    """What every attempt of a worker shares."""

    settings: Settings
    database: Database
    storage: Storage
    folders: RunFolders
    slots: Slots
    programs: Programs
    pool: ThreadPoolExecutor


class Attempt:
    """`over` once nothing of it is left: no process, no slot, no run directory."""

    def __init__(self, tools: Tools, claim: Claim, claimed_at: float) -> None:
        """`claimed_at`: the monotonic second before the claim was sent; the lease is counted from there."""
        self.claim = claim
        self.over = False
        self._tools = tools
        self._run = tools.folders.make(claim.job_id, claim.fence)
        self._relay = Relay(tools.database, claim, self._run)
        limit = tools.settings.reference_cache_bytes
        self._shards = ReferenceShards(tools.database, tools.storage, claim, self._run, limit=limit)
        self._publisher = Publisher(
            tools.database, tools.storage, tools.pool, claim, self._run, relay=self._relay, shards=self._shards
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: Failure | None = None
        self._holding = True
        self._stopping = False
        self._kill_at = float("inf")
        self._not_before = 0.0
        self._hold_until(claimed_at + claim.lease_seconds)
        self._slot_ids = tools.slots.take(claim.gpus)
        self._task: Future[None] = tools.pool.submit(self._fetch)
        self._step: Callable[[], None] = self._fetching

    # -- what the supervisor calls -------------------------------------------------------------------

    def tick(self) -> None:
        """Goes on as far as it can without waiting."""
        now = time.monotonic()
        if self._holding and now > self._deadline:
            self.abandon("its lease could not be renewed in time")
        if now >= self._not_before:
            self._guarded(self._step, "supervising the run")

    def beat(self) -> None:
        """Renews the lease, in PostgreSQL and then in the run directory, and relays what the trainer wrote."""
        if self._holding:
            self._guarded(self._renew_and_relay, "renewing the lease and relaying metrics")

    def stop(self, seconds: float) -> None:
        """Asks the trainer for a checkpoint and its end; after `seconds` it is killed."""
        self._stopping = True
        self._kill_at = min(self._kill_at, time.monotonic() + seconds)
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def abandon(self, reason: str) -> None:
        """The job is no longer ours: kills, reports nothing."""
        logger.warning("%s: attempt %d is given up: %s", self.claim.job_id, self.claim.fence, reason)
        self._holding = False
        self._step = self._sweeping

    def _guarded(self, work: Callable[[], None], doing: str) -> None:
        """Runs `work`; an error ends this attempt at most, never the supervisor."""
        try:
            work()
        except StaleFence:
            self.abandon("the job was cancelled, or is another worker's now")
        except DATABASE_AWAY as error:
            logger.warning("%s: PostgreSQL doesn't answer, trying again: %s", self.claim.job_id, error)
            self._not_before = time.monotonic() + RETRY_SECONDS
        except Exception as error:
            logger.exception("%s: error while %s", self.claim.job_id, doing)
            self._not_before = time.monotonic() + RETRY_SECONDS
            if self._failure is None:
                self._failure = failure_of(error, doing)
                self._step = self._sweeping
            elif self._holding:
                self.abandon("its failure could not be reported; its lease will run out")

    def _renew_and_relay(self) -> None:
        sent = time.monotonic()
        with self._tools.database.transaction() as session:
            leases.renew(session, self.claim)
        self._hold_until(sent + self.claim.lease_seconds)
        self._relay.relay()

    def _hold_until(self, lease_end: float) -> None:
        """Supervisor and ranks stop a little before the lease ends, each by its own watch."""
        self._deadline = lease_end - LEASE_MARGIN * self.claim.lease_seconds
        self._run.renew_lease(self._deadline - time.monotonic())

    # -- the steps -----------------------------------------------------------------------------------

    def _fetch(self) -> None:
        """On the pool: brings the inputs and spec.json into the run directory."""
        with self._tools.database.transaction() as session:
            order = results.work_order(session, self.claim)
        known = self._shards.fetch(order)
        storage, device = self._tools.storage, self._tools.slots.device
        self._run.create(collect(storage, order, self.claim, self._run, device, reference_cache=known))

    def _fetching(self) -> None:
        if not self._task.done():
            return
        error = self._task.exception()
        if isinstance(error, DATABASE_AWAY):
            self._task = self._tools.pool.submit(self._fetch)
        if error is not None:
            raise error
        if not self._stopping:
            command = self._tools.programs.command(self.claim.kind, self._run)
            environment = trainer_environment(os.environ, self._run, self._tools.slots.device, self._slot_ids)
            self._process = launch(command, environment, self._run)
            logger.info("%s: attempt %d runs as process %d", self.claim.job_id, self.claim.fence, self._process.pid)
        self._step = self._running

    def _running(self) -> None:
        if self._process is not None and self._process.poll() is None and time.monotonic() < self._kill_at:
            self._publisher.advance()
        else:
            self._step = self._sweeping

    def _sweeping(self) -> None:
        """Slots come back as soon as no process is left."""
        if self._process is not None:
            self._process.poll()
            if not sweep(self._run, self._process.pid if self._process.returncode is None else None):
                return
        self._tools.slots.give_back(self._slot_ids)
        self._slot_ids = []
        self._step = self._publishing_rest if self._holding else self._leaving

    def _publishing_rest(self) -> None:
        if self._failure is None:
            self._relay.relay()
            if self._publisher.advance():
                return
        self._step = self._reporting

    def _reporting(self) -> None:
        ending = self._failure or how_it_ended(self._run, self._process, stopping=self._stopping)
        with self._tools.database.transaction() as session:
            if isinstance(ending, Failure):
                results.fail(session, self.claim, ending, max_attempts=self._tools.settings.max_attempts)
            elif ending == "stopped":
                results.hand_back(session, self.claim)
            elif self.claim.kind == "validate":
                results.finish_validation(session, self.claim, json.loads(self._run.prepared_file.read_bytes()))
            else:
                results.succeed(session, self.claim)
        self._holding = False
        said = ending.message if isinstance(ending, Failure) else ending
        logger.info("%s: attempt %d is over: %s", self.claim.job_id, self.claim.fence, said)
        self._step = self._leaving

    def _leaving(self) -> None:
        if self._task.done() and not self._publisher.busy:
            self._task = self._tools.pool.submit(self._clear)
            self._step = self._clearing

    def _clear(self) -> None:
        """On the pool: the log outlives its run directory, in storage, for the operator."""
        if self._run.log_file.exists():
            self._tools.storage.put_file(log_key(self.claim.job_id, self.claim.fence), self._run.log_file)
        self._tools.folders.remove(self._run)

    def _clearing(self) -> None:
        if not self._task.done():
            return
        error = self._task.exception()
        if error is not None:
            logger.error("%s: %s could not be cleared away: %s", self.claim.job_id, self._run.path, error)
        self.over = True
