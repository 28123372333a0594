"""The supervisor: one loop, in one long-lived thread, that claims work and sees every attempt to its end.

It is the only thread that forks trainers: a trainer's death signal fires when the thread that forked it ends.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

from psycopg.errors import UndefinedColumn, UndefinedFunction, UndefinedTable
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from control_plane import checks, leases, results
from control_plane.database import DATABASE_AWAY, WORKER_IDLE_SECONDS, Database
from control_plane.errors import StaleFence
from control_plane.settings import Settings
from control_plane.storage import open_storage
from dpo_core.run_directory import Failure
from worker import leftovers, taking
from worker.attempt import Attempt
from worker.calling_pool import CallingPool
from worker.checking import Checking
from worker.fitness import Fitness
from worker.folders import RunFolders
from worker.housekeeping import Housekeeping
from worker.launch import Programs
from worker.merging import Merging
from worker.room import LEAST, Room
from worker.slots import GpuWatch, find_slots
from worker.verdict import failure_of
from worker.work import Tools, Work

logger = logging.getLogger(__name__)

WORK_POLL_SECONDS = 0.25
"""How often work is looked at by which nobody calls: a sweep that waits for processes to die, a deadline."""
RECONCILE_SECONDS = 5.0
FULL_TIMES = 3
"""How much more seldom a worker without a free slot looks for work by itself: hints tell of what it could take still
(data to read, checks, merges) and of jobs for which it is to make room."""
OTHER_SCHEMA = (UndefinedTable, UndefinedColumn, UndefinedFunction)
"""Not migrated yet: somebody will, perhaps right now."""
POOL_THREADS = 8
LEAVE_SECONDS = 10.0
"""How long a stopping worker sweeps away processes of what it gave up, and then waits for what else it does."""


class Supervisor:
    """`run` returns after `stop`. `wake`, `nudge` and `stop` may be called from any thread and from signal handlers."""

    def __init__(self, settings: Settings, programs: Programs) -> None:
        storage = open_storage(settings.storage_url)
        # SimpleQueue.put is reentrant: a signal handler may interrupt the very thread that waits.
        self._waker: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._settings = settings
        self._database = Database(settings.database_url.get_secret_value(), idle_seconds=WORKER_IDLE_SECONDS)
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
            pool=CallingPool(POOL_THREADS, self.nudge),
        )
        self._housekeeping = Housekeeping(self._tools, stopping=lambda: self._stops_asked > 0)
        self._id = self._housekeeping.worker_id
        # Not on the others' pool: a look that waited for slow storage would tell of a driver that doesn't answer.
        self._looks = CallingPool(1, self.nudge)
        self._gpus = GpuWatch(self._tools.slots, self._looks)
        self._work: list[Work] = []
        self._stops_asked = 0
        self._stops_obeyed = 0
        self._give_up_at = self._leave_at = float("inf")
        self._began = time.monotonic()
        self._free = 0
        """Slots, when they were last looked at."""
        self._next_beat = self._next_look = self._next_reconcile = 0.0

    def wake(self) -> None:
        """Looks for work now instead of at the next poll."""
        self._next_look = 0.0
        self._waker.put(None)

    def nudge(self) -> None:
        """Looks at the work it has: a process or a task of it may be over."""
        self._waker.put(None)

    def stop(self) -> None:
        """First call: takes no more work, lets trainers make a checkpoint, hands jobs back. Second: kills them."""
        self._stops_asked += 1
        self._waker.put(None)

    def run(self) -> bool:
        """Works until it was told to stop and its work is over; False where something hung and was left behind."""
        slots = self._tools.slots
        logger.info("worker %s: %d %s slots", self._id, slots.total, slots.device)
        self._housekeeping.leftovers.clear_away(leftovers.PATIENCE_AT_START)
        while self._goes_on:
            self._round()
            if self._goes_on:  # else nobody may ever call any more
                self._wait()
        self._housekeeping.say_goodbye()
        in_order = not self._work and self._all_done()
        for pool in (self._tools.pool, self._looks):
            pool.shutdown(wait=in_order, cancel_futures=True)
        self._database.dispose()
        return in_order

    @property
    def _goes_on(self) -> bool:
        return (bool(self._work) or not self._stops_asked) and time.monotonic() < self._leave_at

    def _round(self) -> None:
        """Everything that is due, without waiting for anything but PostgreSQL, a second each for a disk that hangs and
        a Redis that doesn't answer, and some for workers that stand still in a change of folders (folders.py)."""
        now = time.monotonic()
        self._obey_stops()
        self._hurry(now)
        if now >= self._next_beat:
            self._next_beat = self._next(now, self._settings.heartbeat_seconds)
            for work in self._work:
                work.beat()
        for work in self._work:
            work.tick()
        if any(work.over for work in self._work):
            self._work = [work for work in self._work if not work.over]
            self._next_look = 0.0  # perhaps for the next step of the same job
        free, self._free = self._free, self._tools.slots.free
        if self._free > free:
            self._next_look = 0.0
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
        """Until something is due, or somebody calls."""
        due = min(self._next_beat, self._next_look, self._next_reconcile) - time.monotonic()
        longest = WORK_POLL_SECONDS if self._work else self._settings.poll_seconds
        try:
            self._waker.get(timeout=max(0.0, min(due, longest)))
            while True:
                self._waker.get_nowait()
        except queue.Empty:
            return

    def _next(self, now: float, seconds: float) -> float:
        """Whole intervals since the beginning: what comes as often comes together, which takes less than one by one."""
        return self._began + ((now - self._began) // seconds + 1) * seconds

    # -- work ------------------------------------------------------------------------------------------

    def _keep_house(self, now: float) -> None:
        if now >= self._next_reconcile:
            self._next_reconcile = self._next(now, RECONCILE_SECONDS)
            self._housekeeping.go_round(draining=self._stops_asked > 0 or self._tools.fitness.away)

    def _look_for_work(self, now: float) -> None:
        self._gpus.poll()
        if now >= self._next_look:
            seldom = 1 if self._tools.slots.free else FULL_TIMES
            self._next_look = self._next(now, seldom * self._settings.poll_seconds)
            while self._takes_work and self._take_one():
                continue

    @property
    def _takes_work(self) -> bool:
        """Not before it is registered: only then is it told which GPUs an older worker has."""
        return not self._stops_asked and self._housekeeping.registered and self._tools.fitness.fit

    def _take_one(self) -> bool:
        """False where there is nothing to take, and where it could not be begun: then nothing more is looked for."""
        sent = time.monotonic()
        with self._database.transaction() as session:
            taken = taking.take_one(session, self._tools, self._id, Counter(work.kind for work in self._work))
        if taken.told:
            logger.info("told to yield to a job of high priority: %s", ", ".join(taken.told))
            self._next_beat = 0.0
        if taken.job is not None:
            return self._begin_job(taken.job, sent)
        return taken.check is not None and self._begin_check(taken.check, sent)

    def _begin_job(self, claim: leases.Claim, sent: float) -> bool:
        def give_back(session: Session, failure: Failure, free: int) -> None:
            most, retry = self._settings.max_attempts, self._settings.retry_seconds
            more = free + LEAST
            results.fail(session, claim, failure, max_attempts=most, retry_seconds=retry, needs_bytes=more, begun=False)

        return self._begin(lambda: Attempt(self._tools, claim, sent), claim.job_id, give_back)

    def _begin_check(self, claim: checks.Claim, sent: float) -> bool:
        work = Merging if claim.kind == "merge" else Checking

        def give_back(session: Session, failure: Failure, _: int) -> None:
            checks.fail(session, claim, failure, max_attempts=self._settings.max_attempts)

        return self._begin(lambda: work(self._tools, claim, sent), claim.check_id, give_back)

    def _begin(self, make: Callable[[], Work], row_id: str, give_back: Callable[[Session, Failure, int], None]) -> bool:
        """Whether the work was begun; without a run directory it is given back, with the bytes that were free."""
        try:
            self._work.append(make())
            self.nudge()  # the round that took it has passed the others' work already
        except OSError as error:
            free = self._tools.room.free
            logger.exception("%s: no run directory could be made", row_id)
            self._tools.fitness.could_not_begin(row_id)
            with suppress(StaleFence), self._database.transaction() as session:
                give_back(session, failure_of(error, "making a run directory", "train"), free)
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
        self._give_up_at = min(self._give_up_at, time.monotonic() + seconds + self._settings.lease_seconds)
        for work in self._work:
            work.stop(seconds)

    def _hurry(self, now: float) -> None:
        """What could not be handed back in time is left to its lease, so that a stop takes no longer than was said."""
        if now < self._give_up_at:
            return
        self._give_up_at, self._leave_at = float("inf"), min(self._leave_at, now + LEAVE_SECONDS)
        for work in self._work:
            work.give_up("the time to stop is over")

    def _all_done(self) -> bool:
        """Whether what runs beside the work is over, or soon is."""
        house = self._housekeeping
        running: tuple[Future[Any] | None, ...] = (house.removals, house.clearing, self._gpus.pending)
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
