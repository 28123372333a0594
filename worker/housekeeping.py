"""What a worker does every few seconds beside its work: says that it is there, and what any worker does for all.

Jobs that others lost wait again, what is out of date goes, storage is cleared, and a hint says that work waits.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future

from control_plane import checks, deliveries, files, leases, removals, room, uploads, workers
from control_plane.database import DATABASE_AWAY
from control_plane.hints import Hints
from control_plane.ids import new_id
from worker import leftovers
from worker.leftovers import Leftovers
from worker.room import LEAST
from worker.work import Tools

logger = logging.getLogger(__name__)

TIDYING_SECONDS = 30.0
"""What is out of date may stay for so much longer."""


LEFTOVERS_SECONDS = 60.0
"""How often it is looked for run directories that nobody holds."""


class Housekeeping:
    def __init__(self, tools: Tools, *, stopping: Callable[[], bool]) -> None:
        """`stopping`: whether what takes long is to be left to the next worker."""
        slots = tools.slots
        self.worker_id = new_id("worker")
        self.removals: Future[None] | None = None
        """Those that are under way, or were last."""
        self.clearing: Future[None] | None = None
        """Of leftovers; as above."""
        self.leftovers = Leftovers(tools, until=stopping)
        self._tools = tools
        self._hints = Hints(tools.settings.redis_url.get_secret_value())
        self._facts = workers.Facts(
            id=self.worker_id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            device=slots.device,
            slots=len(slots.ids),
        )
        self.registered = False
        """Whether the others know of this worker, and it of them."""
        self._next_tidying = 0.0
        self._next_clearing = time.monotonic() + LEFTOVERS_SECONDS

    def go_round(self, *, draining: bool) -> None:
        """Once through everything that is due. Waits for PostgreSQL, and a second each for a disk and for Redis."""
        self._beat(draining)
        settings = self._tools.settings
        with self._tools.database.transaction() as session:
            requeued = leases.reconcile(
                session, max_attempts=settings.max_attempts, retry_seconds=settings.retry_seconds
            )
            requeued += checks.reconcile(session, max_attempts=settings.max_attempts)
        free = self._tools.room.free
        with self._tools.database.transaction() as session:
            if free >= LEAST:
                room.release(session, free)
            waiting = leases.waiting(session) or checks.waiting(session)
        self._tidy()
        self._carry_out_removals()
        self._clear_leftovers()
        if requeued:
            logger.warning("lost by their workers, waiting again: %s", ", ".join(requeued))
        if waiting:
            self._hints.send()

    def _tidy(self) -> None:
        """Every TIDYING_SECONDS, and in every round as long as something goes."""
        if time.monotonic() < self._next_tidying:
            return
        self._next_tidying = time.monotonic() + TIDYING_SECONDS
        with self._tools.database.transaction() as session:
            went = files.remove_expired(session) + uploads.end_expired(session)
            deliveries.forget_old(session)
        if went:
            self._next_tidying = 0.0

    def say_goodbye(self) -> None:
        if not self.registered:
            return
        try:
            with self._tools.database.transaction() as session:
                workers.forget(session, self.worker_id)
        except DATABASE_AWAY as error:
            logger.warning("PostgreSQL doesn't answer; it will notice by itself that this worker is gone: %s", error)

    def _beat(self, draining: bool) -> None:
        slots = self._tools.slots
        gpus = slots.ids if slots.device == "cuda" else ()
        condition = workers.Condition(usable=slots.total, gpus=gpus, out=slots.out, draining=draining)
        with self._tools.database.transaction() as session:
            if not self.registered:
                workers.register(session, self._facts)
            owners = workers.beat(session, self.worker_id, condition)
        slots.leave_to_others(owners)
        self.registered = True

    def _carry_out_removals(self) -> None:
        """On the pool, one round at a time: a slow storage must not fill the pool that publishes checkpoints."""
        if _over(self.removals, "removals from storage"):
            self.removals = self._tools.pool.submit(self._remove_from_storage)

    def _remove_from_storage(self) -> None:
        removals.carry_out(self._tools.database, self._tools.storage)
        self._tools.storage.remove_abandoned()

    def _clear_leftovers(self) -> None:
        """On the pool: of workers of this host that died, and what could not be removed when it was due."""
        if time.monotonic() >= self._next_clearing and _over(self.clearing, "clearing leftovers away"):
            self._next_clearing = time.monotonic() + LEFTOVERS_SECONDS
            self.clearing = self._tools.pool.submit(self.leftovers.clear_away, leftovers.PATIENCE_LATER)


def _over(task: Future[None] | None, doing: str) -> bool:
    """Whether it may begin anew; says what went wrong."""
    if task is None:
        return True
    if task.done() and (error := task.exception()):
        logger.warning("%s failed, trying again: %s", doing, error)
    return task.done()
