"""The supervisor: one loop, in one long-lived thread, that claims work and sees every attempt to its end.

It is the only thread that forks: a trainer's death signal fires when the thread that forked it ends.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from psycopg.errors import UndefinedColumn, UndefinedFunction, UndefinedTable
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from control_plane import checks, leases, preemption, results
from control_plane.database import Database
from control_plane.errors import StaleFence
from control_plane.line import Kind
from control_plane.questions import Kind as CheckKind
from control_plane.settings import Settings
from control_plane.storage import open_storage
from dpo_core.run_directory import Failure
from worker import leftovers
from worker.attempt import Attempt
from worker.checking import Checking
from worker.fitness import Fitness
from worker.folders import RunFolders
from worker.housekeeping import Housekeeping
from worker.launch import Programs
from worker.merging import Merging
from worker.room import LEAST, Room
from worker.slots import GpuWatch, find_slots
from worker.verdict import failure_of
from worker.work import DATABASE_AWAY, Tools, Work

logger = logging.getLogger(__name__)

CHILD_POLL_SECONDS = 0.1
"""How soon the end of a trainer is seen: a waitpid, nothing more."""
RECONCILE_SECONDS = 5.0
OTHER_SCHEMA = (UndefinedTable, UndefinedColumn, UndefinedFunction)
"""Not migrated yet: somebody will, perhaps right now."""
VALIDATIONS_AT_ONCE = 2
"""Validation takes no slot, but a CPU and memory."""
CHECKS_AT_ONCE = 2
"""So do checks; they are counted apart, so that neither waits for the other."""
MERGES_AT_ONCE = 1
"""Each holds a whole model in memory."""
POOL_THREADS = 8
LEAVE_SECONDS = 10.0
"""How long a stopping worker sweeps away processes of what it gave up, and then waits for what else it does."""


class Supervisor:
    """`run` returns after `stop`. `wake` and `stop` may be called from any thread and from signal handlers."""

    def __init__(self, settings: Settings, programs: Programs) -> None:
        storage = open_storage(settings.storage_url)
        self._settings = settings
        self._database = Database(settings.database_url.get_secret_value())
        folders = RunFolders(settings.runs_dir or storage.folder.parent / "runs")
        self._tools = Tools(
            settings=settings,
            database=self._database,
            storage=storage,
            folders=folders,
            room=(room := Room(folders.root, storage.folder)),
            fitness=Fitness(room),
            slots=find_slots(settings.cpu_slots, os.environ),
            programs=programs,
            pool=ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="files"),
        )
        self._housekeeping = Housekeeping(self._tools)
        self._id = self._housekeeping.worker_id
        self._gpus = GpuWatch(self._tools.slots, self._tools.pool)
        self._work: list[Work] = []
        # SimpleQueue.put is reentrant: a signal handler may interrupt the very thread that waits.
        self._waker: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stops_asked = 0
        self._stops_obeyed = 0
        self._give_up_at = self._leave_at = float("inf")
        self._next_beat = self._next_look = self._next_reconcile = 0.0

    def wake(self) -> None:
        """Looks for work now instead of at the next poll."""
        self._next_look = 0.0
        self._waker.put(None)

    def stop(self) -> None:
        """First call: takes no more work, lets trainers make a checkpoint, hands jobs back. Second: kills them."""
        self._stops_asked += 1
        self._waker.put(None)

    def run(self) -> bool:
        """Works until it was told to stop and its work is over; False where something hung and was left behind."""
        slots = self._tools.slots
        logger.info("worker %s: %d %s slots", self._id, slots.total, slots.device)
        leftovers.clear_away(self._tools.folders, self._tools.storage)
        while (self._work or not self._stops_asked) and time.monotonic() < self._leave_at:
            self._round()
            self._wait()
        self._housekeeping.say_goodbye()
        in_order = not self._work and self._all_done()
        self._tools.pool.shutdown(wait=in_order, cancel_futures=True)
        self._database.dispose()
        return in_order

    def _round(self) -> None:
        """Everything that is due, without waiting for anything but PostgreSQL."""
        now = time.monotonic()
        self._obey_stops()
        self._hurry(now)
        if now >= self._next_beat:
            self._next_beat = now + self._settings.heartbeat_seconds
            for work in self._work:
                work.beat()
        for work in self._work:
            work.tick()
        if any(work.over for work in self._work):
            self._work = [work for work in self._work if not work.over]
            self._next_look = 0.0  # there is room, and perhaps the next step of the same job
        again = self._settings.poll_seconds
        try:
            self._keep_house(now)
        except Exception as error:  # noqa: BLE001 - whatever it is, what runs must go on
            self._next_reconcile = now + again
            _tell(error, again)
        try:
            self._look_for_work(now)
        except Exception as error:  # noqa: BLE001 - as above
            self._next_look = now + again
            _tell(error, again)

    def _wait(self) -> None:
        """Until something is due, a child may have ended, or somebody calls."""
        due = min(self._next_beat, self._next_look, self._next_reconcile) - time.monotonic()
        longest = CHILD_POLL_SECONDS if self._work else self._settings.poll_seconds
        try:
            self._waker.get(timeout=max(0.0, min(due, longest)))
            while True:
                self._waker.get_nowait()
        except queue.Empty:
            return

    # -- work ------------------------------------------------------------------------------------------

    def _keep_house(self, now: float) -> None:
        if now >= self._next_reconcile:
            self._next_reconcile = now + RECONCILE_SECONDS
            self._housekeeping.go_round(draining=self._stops_asked > 0 or self._tools.fitness.away)

    def _look_for_work(self, now: float) -> None:
        self._gpus.poll()
        if now >= self._next_look:
            self._next_look = now + self._settings.poll_seconds
            while self._takes_work and (self._claim_job() or (self._takes_work and self._claim_check())):
                continue

    @property
    def _takes_work(self) -> bool:
        return not self._stops_asked and self._tools.fitness.fit

    def _claim_job(self) -> bool:
        """Takes one more job, if one fits."""
        has_room = self._count("validate") < VALIDATIONS_AT_ONCE
        kinds: tuple[Kind, ...] = ("validate", "train") if has_room else ("train",)
        sent = time.monotonic()
        with self._database.transaction() as session:
            claim = leases.claim(
                session,
                worker_id=self._id,
                free=self._tools.slots.free,
                total=self._tools.slots.total,
                lease_seconds=self._settings.lease_seconds,
                kinds=kinds,
                project_gpus=self._settings.project_gpus,
                max_attempts=self._settings.max_attempts,
            )
        if claim is None:
            self._make_room()
            return False

        def give_back(session: Session, failure: Failure) -> None:
            most, more = self._settings.max_attempts, self._tools.room.free + LEAST
            retry = self._settings.retry_seconds
            results.fail(session, claim, failure, max_attempts=most, retry_seconds=retry, needs_bytes=more, begun=False)

        return self._begin(lambda: Attempt(self._tools, claim, sent), claim.job_id, give_back)

    def _make_room(self) -> None:
        """Where a job of high priority waits in vain, others may have to yield: their next heartbeats tell them."""
        slots = self._tools.slots
        if slots.free == slots.total:
            return
        with self._database.transaction() as session:
            told = preemption.make_room(
                session,
                worker_id=self._id,
                free=slots.free,
                total=slots.total,
                project_gpus=self._settings.project_gpus,
                max_attempts=self._settings.max_attempts,
            )
        if told:
            logger.info("told to yield to a job of high priority: %s", ", ".join(told))
            self._next_beat = 0.0

    def _claim_check(self) -> bool:
        """Takes one more check, or order to merge, if there is room for it."""
        questions = checks.QUESTIONS if self._count("check") < CHECKS_AT_ONCE else ()
        orders: tuple[CheckKind, ...] = ("merge",) if self._count("merge") < MERGES_AT_ONCE else ()
        if not questions and not orders:
            return False
        sent, lease = time.monotonic(), self._settings.lease_seconds
        with self._database.transaction() as session:
            claim = checks.claim(session, worker_id=self._id, lease_seconds=lease, kinds=[*questions, *orders])
        if claim is None:
            return False
        work = Merging if claim.kind == "merge" else Checking

        def give_back(session: Session, failure: Failure) -> None:
            checks.fail(session, claim, failure, max_attempts=self._settings.max_attempts)

        return self._begin(lambda: work(self._tools, claim, sent), claim.check_id, give_back)

    def _count(self, kind: str) -> int:
        return sum(work.kind == kind for work in self._work)

    def _begin(self, make: Callable[[], Work], row_id: str, give_back: Callable[[Session, Failure], None]) -> bool:
        """Whether the work was begun; without a run directory it is given back at once."""
        try:
            self._work.append(make())
        except OSError as error:
            logger.exception("%s: no run directory could be made", row_id)
            self._tools.fitness.could_not_begin(row_id)
            with suppress(StaleFence), self._database.transaction() as session:
                give_back(session, failure_of(error, "making a run directory", "train"))
            return False
        return True

    # -- the end -------------------------------------------------------------------------------------------

    def _obey_stops(self) -> None:
        if self._stops_asked == self._stops_obeyed:
            return
        self._stops_obeyed = self._stops_asked
        self._next_reconcile = 0.0  # the others hear that this worker takes no more
        seconds = self._settings.stop_seconds if self._stops_asked == 1 else 0.0
        logger.info("stopping: %d attempts have %g s to make a checkpoint", len(self._work), seconds)
        if self._stops_asked == 1:
            self._give_up_at = time.monotonic() + seconds + self._settings.lease_seconds
        for work in self._work:
            work.stop(seconds)

    def _hurry(self, now: float) -> None:
        """What could not be handed back in time is left to its lease, so that a stop takes no longer than was said."""
        if now < self._give_up_at:
            return
        self._give_up_at, self._leave_at = float("inf"), now + LEAVE_SECONDS
        for work in self._work:
            work.give_up("the time to stop is over")

    def _all_done(self) -> bool:
        """Whether what runs beside the work is over, or soon is."""
        running: tuple[Future[Any] | None, ...] = (self._housekeeping.removals, self._gpus.pending)
        pending = [future for future in running if future is not None]
        return not wait(pending, timeout=LEAVE_SECONDS).not_done


def _tell(error: Exception, again: float) -> None:
    """Why the queue could not be looked after."""
    if isinstance(error, DATABASE_AWAY):
        logger.warning("PostgreSQL doesn't answer, trying again in %g s: %s", again, error)
    elif isinstance(error, ProgrammingError) and isinstance(error.orig, OTHER_SCHEMA):
        logger.warning("The database lacks this version's schema: run `dpo migrate`. Looking again in %g s.", again)
    else:
        logger.error("looking after the queue failed, trying again in %g s", again, exc_info=error)
