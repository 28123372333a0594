"""One leased piece of work, from its claim to its end: fetch → run → sweep → report → clear away.

The supervisor calls `tick` often and `beat` at every heartbeat, always from the one thread that also forks.
What may take long (fetching inputs, clearing away) runs on a pool, so that no lease runs out meanwhile.
Whatever takes the lease away leads to `abandon`: kill, report nothing, clear away.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy.orm import Session

from control_plane.database import DATABASE_AWAY, Database
from control_plane.errors import StaleFence
from control_plane.settings import Settings
from control_plane.storage import Storage
from dpo_core.run_directory import Failure
from worker.fitness import Fitness
from worker.folders import RunFolders
from worker.hangs import Watch
from worker.host_memory import oom_kills
from worker.launch import Kind, Programs, launch, trainer_environment
from worker.room import Room
from worker.slots import Slots
from worker.sweep import UNKILLABLE_SECONDS, Sweep
from worker.verdict import Ending, failure_of, how_it_ended

logger = logging.getLogger(__name__)

LEASE_MARGIN = 0.2
"""The share of a lease that is left for killing the processes before somebody else may start."""
RETRY_SECONDS = 1.0
PUBLISH_SECONDS = 1.0
"""How soon it is seen that a running program left something to publish: that reads folders."""


@dataclass(frozen=True)
class Tools:
    """What all the work of a worker shares."""

    settings: Settings
    database: Database
    storage: Storage
    folders: RunFolders
    slots: Slots
    programs: Programs
    pool: ThreadPoolExecutor
    room: Room
    fitness: Fitness


class Work(ABC):
    """`over` once nothing of it is left: no process, no slot, no run directory that could be removed."""

    def __init__(
        self, tools: Tools, *, row_id: str, fence: int, kind: Kind, gpus: int, lease_seconds: float, claimed_at: float
    ) -> None:
        """`claimed_at`: the monotonic second before the claim was sent; the lease is counted from there."""
        self.id = row_id
        self.kind = kind
        self.over = False
        self._fence = fence
        self._tools = tools
        self._run = tools.folders.make(row_id, fence)
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: Watch | None = None
        self._oom_kills_before = 0
        self._failure: Failure | None = None
        self._room_at_end = 0
        self._hung: Failure | None = None
        self._holding = True
        self._stopping = False
        self._kill_at = float("inf")
        self._sweep = Sweep(self._run)
        self._swept_since: float | None = None
        self.begun = True
        """False where no process of it could be started, through trouble of the worker or its storage."""
        self._not_before = self._next_publish = 0.0
        self._lease_seconds = lease_seconds
        try:
            self._hold_until(claimed_at + lease_seconds)
        except OSError:  # no room for the lease, and then for nothing
            with suppress(OSError):
                tools.folders.remove(self._run)
            raise
        self._slot_ids = tools.slots.take(gpus)
        self._task: Future[None] | None = None
        self._step: Callable[[], None] = self._fetching

    # -- what a kind of work fills in ----------------------------------------------------------------

    @abstractmethod
    def _fetch(self) -> None:
        """On the pool: brings the inputs and spec.json into the run directory."""

    @abstractmethod
    def _beat(self, session: Session) -> None:
        """Renews the lease, obeys what that brings, and tells how far the program is. StaleFence when the row is no
        longer ours; so below, too."""

    @abstractmethod
    def _report(self, session: Session, ending: Ending) -> None:
        """Tells PostgreSQL how the work ended."""

    @abstractmethod
    def _relay(self) -> None:
        """Brings all that the program wrote into the database."""

    def _publish(self) -> bool:
        """Publishes more of what the program left; False once nothing is left to publish."""
        return False

    def _clear(self) -> None:
        """On the pool: removes the run directory."""
        self._tools.folders.remove(self._run)

    @property
    def _busy(self) -> bool:
        """Whether something still runs on the pool."""
        return self._task is not None and not self._task.done()

    # -- what the supervisor calls -------------------------------------------------------------------

    def tick(self) -> None:
        """Goes on as far as it can without waiting."""
        before = None
        while self._step != before:
            now = time.monotonic()
            if self._holding and now > self._deadline:
                self.abandon("its lease could not be renewed in time")
            if now < self._not_before:
                return
            before = self._step
            self._guarded(before, "supervising the run")

    def beat(self) -> None:
        """Renews the lease, in PostgreSQL and then in the run directory, and relays what the program wrote."""
        if self._holding:
            self._guarded(self._beat_and_hold, "renewing the lease and relaying metrics")

    def stop(self, seconds: float) -> None:
        """Asks the program once for a checkpoint, if it makes any, and its end; `seconds` after the first call, or
        earlier if a later one says so, it is killed."""
        self._kill_at = min(self._kill_at, time.monotonic() + seconds)
        if not self._stopping and self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._stopping = True

    def abandon(self, reason: str) -> None:
        """The work is no longer ours: kills, reports nothing."""
        logger.warning("%s: attempt %d is given up: %s", self.id, self._fence, reason)
        self._holding = False
        self._step = self._sweeping
        self._not_before = 0.0

    def give_up(self, reason: str) -> None:
        """As `abandon`, unless it was reported already."""
        if self._holding:
            self.abandon(reason)

    def _guarded(self, work: Callable[[], None], doing: str) -> None:
        """Runs `work`; an error ends this attempt at most, never the supervisor."""
        try:
            work()
        except StaleFence:
            self.abandon("it was cancelled or removed, or is another worker's now")
        except DATABASE_AWAY as error:
            logger.warning("%s: PostgreSQL doesn't answer, trying again: %s", self.id, error)
            self._not_before = time.monotonic() + RETRY_SECONDS
        except Exception as error:
            self._not_before = time.monotonic() + RETRY_SECONDS
            if self._failure is None:
                self._end()
                self._failure = failure_of(error, doing, self.kind)
                self.begun = self._process is not None or not isinstance(error, OSError)
                if not self.begun:
                    self._tools.fitness.could_not_begin(self.id)
            elif self._holding:
                self.abandon("its failure could not be reported; its lease will run out")
            logger.exception("%s: error while %s", self.id, doing)

    def _end(self) -> None:
        """Ends the run, if it has not ended, and remembers how much room there is before anybody makes more."""
        self._step = self._sweeping
        self._room_at_end = self._tools.room.free

    def _beat_and_hold(self) -> None:
        sent = time.monotonic()
        with self._tools.database.transaction() as session:
            self._beat(session)
        self._hold_until(sent + self._lease_seconds)

    def _hold_until(self, lease_end: float) -> None:
        """Supervisor and processes stop a little before the lease ends, each by its own watch."""
        self._deadline = lease_end - LEASE_MARGIN * self._lease_seconds
        try:
            self._run.renew_lease(self._deadline - time.monotonic())
        except OSError:
            if self._failure is None:
                raise  # once: from then on the processes are killed, and need no lease

    # -- the steps -----------------------------------------------------------------------------------

    def _fetching(self) -> None:
        if self._task is None:
            self._task = self._tools.pool.submit(self._fetch)
        if not self._task.done():
            return
        error = self._task.exception()
        if isinstance(error, DATABASE_AWAY):
            self._task = None
        if error is not None:
            raise error
        if not self._stopping:
            command = self._tools.programs.command(self.kind, self._run)
            environment = trainer_environment(os.environ, self._run, self._tools.slots.device, self._slot_ids)
            self._oom_kills_before = oom_kills()
            self._process = launch(command, environment, self._run)
            self._tools.fitness.began()
            self._watch = Watch(self._run, self._tools.settings.hang_seconds) if self.kind == "train" else None
            logger.info("%s: attempt %d runs as process %d", self.id, self._fence, self._process.pid)
        self._step = self._running

    def _running(self) -> None:
        if self._process is None or self._process.poll() is not None or time.monotonic() >= self._kill_at:
            self._end()
        elif self._watch is not None and (hung := self._watch.look()) is not None:
            self._hung = hung
            self._end()
        elif time.monotonic() >= self._next_publish and not self._publish():
            self._next_publish = time.monotonic() + PUBLISH_SECONDS

    def _sweeping(self) -> None:
        """Slots come back as soon as no process is left. The lease of what can't be killed runs out meanwhile."""
        if self._process is not None:
            self._process.poll()
            self._swept_since = self._swept_since or time.monotonic()
            if not self._sweep.kill(self._process.pid if self._process.returncode is None else None):
                if time.monotonic() - self._swept_since > UNKILLABLE_SECONDS:
                    self.give_up("a process of it can't be killed; another worker goes on when its lease has run out")
                return
            self._process.poll()  # its death may have been seen in the sweep first
        self._tools.slots.give_back(self._slot_ids)
        self._slot_ids = []
        self._step = self._publishing_rest if self._holding else self._leaving

    def _publishing_rest(self) -> None:
        if self._failure is None:
            self._relay()
            if self._publish():
                return
        self._step = self._reporting

    def _reporting(self) -> None:
        ending = self._failure or self._how_it_ended()
        with self._tools.database.transaction() as session:
            self._report(session, ending)
        self._holding = False
        said = ending.message if isinstance(ending, Failure) else ending
        logger.info("%s: attempt %d is over: %s", self.id, self._fence, said)
        self._step = self._leaving

    def _how_it_ended(self) -> Ending:
        killed = time.monotonic() >= self._kill_at
        oom_killed = not killed and oom_kills() > self._oom_kills_before
        ended = how_it_ended(self._run, self._process, stopping=self._stopping, oom_killed=oom_killed)
        return ended if self._hung is None or ended == "succeeded" else self._hung

    def _leaving(self) -> None:
        if not self._busy:
            self._task = self._tools.pool.submit(self._clear)
            self._step = self._clearing

    def _clearing(self) -> None:
        if self._task is None or not self._task.done():
            return
        error = self._task.exception()
        if error is not None:
            logger.error("%s: %s could not be cleared away: %s", self.id, self._run.path, error)
            self._tools.folders.leave(self._run)
        self.over = True
