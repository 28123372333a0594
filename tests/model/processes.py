"""The processes of the service, as what they do to PostgreSQL, storage and Redis: clients behind the API, workers.

What they believe is kept here, and may be wrong: a worker can sleep beyond its lease and go on, and a connection that
was cut in a commit leaves open whether it took place. What they call is the service's own code.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

from fastapi import BackgroundTasks

from api import jobs as routes
from api.auth import Caller
from api.repeats import Repeats
from api.services import Services
from control_plane import leases, publication, removals, results
from control_plane.job_requests import read_request
from control_plane.leases import Claim
from control_plane.repetition import Repeatable
from control_plane.settings import Settings
from control_plane.storage import Storage, checkpoint_prefix, state_prefix
from dpo_core.disk import STATES_KEPT
from dpo_core.run_directory import Failure, Manifest
from dpo_core.spec import TrainingSpec
from tests.control_plane.rows import PROJECT, body
from tests.model.promises import Broken
from tests.model.stepped import Line
from worker.publish import publish_stored
from worker.work import LEASE_MARGIN

CALLER = Caller(PROJECT, "key-1", "test", frozenset(), "req-1")
ONCE = Repeats(None, 0, hung_up=lambda: False)
LEASE_SECONDS = 30.0
SLOTS = 2
"""Of each worker."""
PROJECT_GPUS = 3
MAX_ATTEMPTS = 2
STEPS = 4
"""Of a whole run."""
CHOSEN = TrainingSpec(batch_size=16, epochs=1, beta=0.1, learning_rate=1e-6)
PREPARED = {"training": CHOSEN.model_dump(mode="json"), "values": {}}


class Bytes:
    """Storage, as which prefixes hold something."""

    def __init__(self) -> None:
        self.stored: set[str] = set()

    def delete_prefix(self, prefix: str) -> None:
        self.stored = {stored for stored in self.stored if not f"{stored}/".startswith(f"{prefix}/")}


class StoppingHints:
    """Redis, which is told of work only after that work can be seen."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def send(self) -> None:
        if self._line.in_transaction:
            raise Broken("a hint was sent before the commit that made the work")
        self._line.stop("hint")


class Named:
    """Hypothesis prints it as `repr` does."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


class Client(Named):
    """A user with the openai client, behind a process of the API of its own."""

    def __init__(self, name: str, line: Line, settings: Settings) -> None:
        self.name, self.line = name, line
        self._services = Services(
            settings=settings,
            database=line.database,
            storage=cast(Storage, None),
            hints=StoppingHints(line),  # type: ignore[arg-type]
            feed=None,  # type: ignore[arg-type]
            rate_limits=None,  # type: ignore[arg-type]
        )

    def __repr__(self) -> str:
        return self.name

    def create(self, number: int, gpus: int, repeatable: Repeatable) -> str:
        """As the route does, but in this thread: its event loop would take another one."""
        wanted = read_request(body(metadata={"request": str(number)}, resources={"gpus": gpus}))
        job = routes._create(self._services, CALLER, wanted, repeatable)
        self._services.hints.send()
        return job.id

    def cancel(self, job_id: str) -> None:
        routes.cancel_job(job_id, self._services, CALLER, ONCE)

    def pause(self, job_id: str) -> None:
        routes.pause_job(job_id, self._services, CALLER, ONCE)

    def resume(self, job_id: str) -> None:
        background = BackgroundTasks()
        routes.resume_job(job_id, self._services, CALLER, ONCE, background)
        for task in background.tasks:  # after the answer
            task.func(*task.args, **task.kwargs)


@dataclass(eq=False)
class Held(Named):
    """A claim that a worker believes to hold, and how far the run is that it supervises."""

    claim: Claim
    until: float
    """By the worker's own clock, when it kills its processes; they measure and publish nothing after that."""
    step: int
    measured: int
    """Up to which step metrics were relayed."""
    published: set[int] = field(default_factory=set)
    pausing: bool = False
    ending: str | None = None
    """How it ended; the processes are gone, and it is to be reported."""

    @property
    def has_a_checkpoint(self) -> bool:
        """One that is not known to be published."""
        return self.measured > 0 and self.measured not in self.published

    def __repr__(self) -> str:
        return f"{self.claim.kind} {self.claim.job_id[-4:]}/{self.claim.fence} at step {self.step}"


@dataclass(eq=False)
class Worker(Named):
    """Its supervisor's thread does one thing at a time, and its pool publishes meanwhile."""

    name: str
    loop: Line
    pool: Line
    storage: Bytes
    held: list[Held] = field(default_factory=list)
    left: list[Claim] = field(default_factory=list)
    """Of its run directories, whose owner died: no process of them runs any more."""

    def __repr__(self) -> str:
        return self.name

    def die(self) -> None:
        self.left += [held.claim for held in self.held]
        self.held.clear()

    # -- what the supervisor's thread does ---------------------------------------------------------------

    def claim(self, began: float) -> Held | None:
        kinds: Collection[leases.Kind] = ("validate", "train")
        free = SLOTS - sum(held.claim.gpus for held in self.held)
        with self.loop.database.transaction() as session:
            claim = leases.claim(
                session,
                worker_id=self.name,
                free=free,
                total=SLOTS,
                lease_seconds=LEASE_SECONDS,
                kinds=kinds,
                project_gpus=PROJECT_GPUS,
                max_attempts=MAX_ATTEMPTS,
            )
        if claim is None:
            return None
        with self.loop.database.transaction() as session:
            checkpoint = results.work_order(session, claim).checkpoint
        step = checkpoint.step if checkpoint is not None else 0
        return Held(claim, began + (1 - LEASE_MARGIN) * LEASE_SECONDS, step, step)

    def renew(self, held: Held, began: float) -> None:
        with self.loop.database.transaction() as session:
            pausing = leases.renew(session, held.claim)
        held.pausing = held.pausing or pausing
        held.until = began + (1 - LEASE_MARGIN) * LEASE_SECONDS

    def relay(self, held: Held, step: int) -> None:
        """What was measured since the last time that it was committed."""
        lines = [{"split": "train", "step": n, "values": {"loss": 0.5}} for n in range(held.measured + 1, step + 1)]
        with self.loop.database.transaction() as session:
            results.record(session, held.claim, metrics=lines, step=step, total_steps=STEPS)
        held.measured = step

    def report(self, held: Held) -> None:
        claim = held.claim
        with self.loop.database.transaction() as session:
            if held.ending == "stopped":
                results.hand_back(session, claim)
            elif held.ending == "bad_data":
                bad = Failure(kind="user", code="bad_data", message="line 1: not JSON")
                results.fail(session, claim, bad, max_attempts=MAX_ATTEMPTS)
            elif held.ending == "trainer_died":
                died = Failure(kind="infrastructure", code="trainer_died", message="Killed.")
                results.fail(session, claim, died, max_attempts=MAX_ATTEMPTS)
            elif claim.kind == "validate":
                results.finish_validation(session, claim, PREPARED)
            else:
                results.succeed(session, claim)

    def reconcile(self) -> None:
        with self.loop.database.transaction() as session:
            leases.reconcile(session, max_attempts=MAX_ATTEMPTS)
        with self.loop.database.transaction() as session:
            waiting = leases.waiting(session)
        if waiting:
            StoppingHints(self.loop).send()

    def clear_up(self, left: Claim) -> None:
        with self.loop.database.transaction() as session:
            leases.end_dead(session, left.job_id, left.fence, max_attempts=MAX_ATTEMPTS)

    # -- what its pool does ----------------------------------------------------------------------------------

    def publish(self, held: Held, step: int) -> None:
        """A checkpoint, whose metrics were relayed; again, where nobody told whether it was published."""
        claim = held.claim
        public = checkpoint_prefix(claim.job_id, claim.fence, step)
        private = state_prefix(claim.job_id, claim.fence, step)
        with self.pool.database.transaction() as session:
            removals.expect(session, public, private)
        self.storage.stored |= {public, private}
        manifest = Manifest(step=step, kind="full", files=[], final=step == STEPS)
        storage = cast(Storage, self.storage)
        publish_stored(self.pool.database, storage, claim, manifest, public=public, private=private)
        held.published.add(step)
        with self.pool.database.transaction() as session:
            publication.forget_old(session, claim, states=STATES_KEPT)
        removals.carry_out(self.pool.database, storage)
