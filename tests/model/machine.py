"""The random state machine: several workers, reconcilers and clients, which crash, stall, repeat, lag and race.

Each step begins an action, lets one go on by some statements, kills a process, cuts a connection, or lets time pass.
Whoever is not let go on stalls, for as long as the others like. After every commit all promises are checked. At the end
every process dies, and one healthy worker must bring every job to its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from psycopg.errors import DeadlockDetected
from sqlalchemy.exc import OperationalError

from control_plane.errors import Conflict, GaveUp, StaleFence
from control_plane.leases import Claim
from control_plane.repetition import RETRY_WINDOW, Repeatable
from tests.model import promises
from tests.model.processes import LEASE_SECONDS, PROJECT_GPUS, STEPS, Client, Held, Named, Worker
from tests.model.promises import FINAL, Broken, Change
from tests.model.seen import Job, Jobs
from tests.model.stepped import Died, Line
from tests.model.world import World

STAGES = ("running", "published", "queued", "new")
REQUESTS = 4
ORDERS = {
    "validating": ["cancel"],
    "queued": ["pause", "cancel"],
    "running": ["pause", "cancel"],
    "pausing": ["cancel"],
    "paused": ["resume", "resume", "cancel"],
}
WHOLE = 10_000
"""More places than any action has."""
places = st.one_of(st.just(WHOLE), st.just(WHOLE), st.just(WHOLE), st.integers(0, 12), st.integers(-3, -1))
"""By how many statements and commits an action goes on; -n: up to its nth commit, whose answer is lost with the
connection."""
tries = st.one_of(
    st.just([WHOLE]), st.integers(1, 4).map(lambda n: [-n, WHOLE]), st.lists(places, min_size=1, max_size=2)
)
"""At something that is done again when its answer was lost."""


@dataclass(eq=False)
class Action(Named):
    """Something that a process does, under way."""

    what: str
    who: str
    by: Client | Worker
    line: Line
    answer: Future[Any]
    learn: Callable[[Any], None]
    """What the process does with the answer."""
    refused: Callable[[], None]
    """What it does when it hears that its fence is stale, or the order illegal."""
    held: Held | None = None
    claim: Claim | None = None
    """In whose name it is done."""

    def __repr__(self) -> str:
        return f"{self.by}: {self.what} at {self.line.place}"


def drawn(of: Callable[[Any], Iterable[Any]]) -> st.SearchStrategy[Any]:
    """One of what the machine has just now."""
    return st.runner().flatmap(lambda machine: st.sampled_from(list(of(machine))))


def _waits(job: Job) -> bool:
    return job.lease_until is None and job.state in ("validating", "queued")


class JobsModel(RuleBasedStateMachine):
    """Rules are named by what happens."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.now = world.reset()
        self.clients, self.workers = world.processes()
        self.actions: list[Action] = []
        self.jobs: Jobs = {}
        self.requests: list[tuple[int, Repeatable]] = []
        self.tries = Counter[int]()
        """Of each request."""
        self.accepted: dict[str, None] = {}
        """Ids that clients were answered, in that order."""
        self.broken = False

    # -- who can do something --------------------------------------------------------------------------------

    def free_clients(self) -> list[Client]:
        return [client for client in self.clients if client.line.idle]

    def free_workers(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.loop.idle]

    def mortals(self) -> list[Client | Worker]:
        """All of whom something would be lost."""
        return [it for it in (*self.clients, *self.workers) if any(action.by is it for action in self.actions)] + [
            worker for worker in self.workers if worker.held and not any(action.by is worker for action in self.actions)
        ]

    def orders(self) -> list[tuple[str, str]]:
        return [(job_id, order) for job_id in self.accepted for order in ORDERS.get(self.jobs[job_id].state, ())]

    def going(self) -> list[Action]:
        return [action for action in self.actions if not action.line.waits]

    def holdings(self, fits: Callable[[Worker, Held], bool]) -> list[tuple[Worker, Held]]:
        return [(worker, held) for worker in self.workers for held in worker.held if fits(worker, held)]

    def supervised(self) -> list[tuple[Worker, Held]]:
        return self.holdings(lambda worker, held: worker.loop.idle and held.ending is None)

    def training(self) -> list[tuple[Worker, Held]]:
        return [pair for pair in self.supervised() if pair[1].claim.kind == "train"]

    def publishing(self) -> list[tuple[Worker, Held]]:
        return [pair for pair in self.training() if pair[0].pool.idle]

    def ending(self) -> list[tuple[Worker, Held]]:
        """A report waits until what is published at the time is published."""
        return self.holdings(
            lambda worker, held: (
                worker.loop.idle
                and not any(action.held is held for action in self.actions if action.line is worker.pool)
            )
        )

    def leavings(self) -> list[tuple[Worker, Worker, Claim]]:
        """Whoever has nothing else to do may find what any worker of the host left, itself before it died, too."""
        return [(worker, dead, left) for worker in self.free_workers() for dead in self.workers for left in dead.left]

    # -- clients -------------------------------------------------------------------------------------------

    @initialize(stages=st.lists(st.sampled_from(STAGES), min_size=1, max_size=2))
    def jobs_are_there(self, stages: list[str]) -> None:
        """Each job by a worker of its own, up to its stage."""
        for number, stage in enumerate(stages):
            worker = self.workers[number]
            self._create(self.clients[0], number, again=False, places=WHOLE)
            if stage == "new":
                continue
            self.a_worker_claims(worker, places=WHOLE)
            self.an_attempt_ends((worker, worker.held[0]), how="succeeded", places=WHOLE)
            if stage == "queued":
                continue
            self.a_worker_claims(worker, places=WHOLE)
            if stage == "published":
                self.a_worker_relays_metrics((worker, worker.held[0]), steps=1, places=WHOLE)
                self.a_worker_publishes((worker, worker.held[0]), tries=[WHOLE])

    @precondition(lambda self: self.free_clients() and self.tries.total() < 2 * REQUESTS)
    @rule(
        client=drawn(free_clients),
        number=drawn(lambda self: range(min(len(self.requests) + 1, REQUESTS))),
        places=places,
    )
    def a_client_creates_a_job(self, client: Client, number: int, places: int) -> None:
        """Or sends a request again: perhaps its answer was lost. It has hung up before."""
        self._create(client, number, again=number < len(self.requests), places=places)

    def _create(self, client: Client, number: int, *, again: bool, places: int) -> None:
        self.tries[number] += 1
        if not again:
            self.requests.append((1 + number % 2, Repeatable(f"key-{number}" if number % 2 else None, "key-1")))
        gpus, known = self.requests[number]
        this = self.tries[number]
        hung_up = lambda: self.tries[number] > this  # noqa: E731
        repeatable = Repeatable(known.idempotency_key, known.api_key_id, is_retry=again, hung_up=hung_up)
        work = lambda: client.create(number, gpus, repeatable)  # noqa: E731
        what, learn = f"creates job {number}", self.accepted.setdefault
        self._begin(what, client, client.line, work, places=places, who="client", learn=learn)

    @precondition(lambda self: self.free_clients() and self.orders())
    @rule(client=drawn(free_clients), of=drawn(orders), places=places)
    def a_client_orders(self, client: Client, of: tuple[str, str], places: int) -> None:
        """What was possible as of the last commit; it may not be any more when it is done."""
        job_id, order = of
        work = lambda: getattr(client, order)(job_id)  # noqa: E731
        self._begin(f"{order} {job_id}", client, client.line, work, places=places, who="client")

    # -- workers -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.free_workers() and any(map(_waits, self.jobs.values())))
    @rule(worker=drawn(free_workers), places=places)
    def a_worker_claims(self, worker: Worker, places: int) -> None:
        def learn(held: Held | None) -> None:
            if held is not None:
                worker.held.append(held)

        began = self.now
        work = lambda: worker.claim(began)  # noqa: E731
        self._begin("claims", worker, worker.loop, work, places=places, learn=learn)

    @precondition(lambda self: self.supervised())
    @rule(of=drawn(supervised), places=places)
    def a_worker_renews(self, of: tuple[Worker, Held], places: int) -> None:
        (worker, held), began = of, self.now
        work = lambda: worker.renew(held, began)  # noqa: E731
        self._begin(f"renews {held}", worker, worker.loop, work, places=places, held=held)

    @precondition(lambda self: self.training())
    @rule(of=drawn(training), steps=st.integers(0, 2), places=places)
    def a_worker_relays_metrics(self, of: tuple[Worker, Held], steps: int, places: int) -> None:
        """Its trainer stops by its own clock when the lease is about to run out; what it measured may come later."""
        worker, held = of
        if self.now < held.until:
            held.step = min(STEPS, held.step + steps)
        step = held.step
        work = lambda: worker.relay(held, step)  # noqa: E731
        self._begin(f"relays {held}", worker, worker.loop, work, places=places, held=held)

    @precondition(lambda self: self.publishing())
    @rule(of=drawn(publishing), tries=tries)
    def a_worker_publishes(self, of: tuple[Worker, Held], tries: list[int]) -> None:
        """A checkpoint whose metrics were relayed; and again, as long as it doesn't know that it is published."""
        worker, held = of
        if not held.has_a_checkpoint:
            self.a_worker_relays_metrics(of, steps=1, places=WHOLE)
        step = held.measured
        work = lambda: worker.publish(held, step)  # noqa: E731
        for places in tries:
            if worker.pool.idle and held in worker.held and held.has_a_checkpoint:
                self._begin(f"publishes {held}", worker, worker.pool, work, places=places, held=held)

    @precondition(lambda self: self.ending())
    @rule(
        of=drawn(ending),
        how=st.sampled_from(["succeeded", "succeeded", "succeeded", "stopped", "trainer_died", "bad_data"]),
        places=places,
    )
    def an_attempt_ends(self, of: tuple[Worker, Held], how: str, places: int) -> None:
        """The processes are gone first. A run that is not at its end is stopped instead; a report may come again."""
        worker, held = of
        if how == "succeeded" and held.claim.kind == "train" and STEPS not in held.published:
            how = "stopped"
        held.ending = held.ending or how
        work = lambda: worker.report(held)  # noqa: E731
        over = lambda _: self._forget(worker, held)  # noqa: E731
        self._begin(f"{held.ending} {held}", worker, worker.loop, work, places=places, learn=over, held=held)

    @precondition(lambda self: self.free_workers() and any(job.lease_until for job in self.jobs.values()))
    @rule(worker=drawn(free_workers), places=places)
    def a_worker_reconciles(self, worker: Worker, places: int) -> None:
        self._begin("reconciles", worker, worker.loop, worker.reconcile, places=places, who="reconciler")

    @precondition(lambda self: self.leavings())
    @rule(of=drawn(leavings), places=places)
    def a_worker_clears_up_behind_a_dead_one(self, of: tuple[Worker, Worker, Claim], places: int) -> None:
        worker, dead, left = of
        over = lambda _: dead.left.remove(left) if left in dead.left else None  # noqa: E731 - two may look at once
        work = lambda: worker.clear_up(left)  # noqa: E731
        what = f"clears up {left.job_id[-4:]}/{left.fence}"
        self._begin(what, worker, worker.loop, work, places=places, who="finder", learn=over, claim=left)

    # -- what goes on, and what goes wrong -----------------------------------------------------------------------

    @precondition(lambda self: self.going())
    @rule(action=drawn(going), places=places)
    def an_action_goes_on(self, action: Action, places: int) -> None:
        self._go(action, places)

    @precondition(lambda self: self.actions)
    @rule(action=drawn(lambda self: self.actions))
    def a_connection_is_cut(self, action: Action) -> None:
        self._go(action, 1, "lose connection")

    @precondition(lambda self: self.mortals())
    @rule(process=drawn(mortals))
    def a_process_is_killed(self, process: Client | Worker) -> None:
        for action in [action for action in self.actions if action.by is process]:
            self._kill(action)
        if isinstance(process, Worker):
            process.die()

    @rule(seconds=st.sampled_from([1, 10, 25, LEASE_SECONDS + 1, 130, 700]))
    def time_passes(self, seconds: float) -> None:
        self.now = self.world.let_pass(seconds)

    def teardown(self) -> None:
        for action in self.actions:
            action.line.kill()
        if not self.broken:
            self._everything_ends()

    # -- how it is done ------------------------------------------------------------------------------------------

    def _begin(
        self,
        what: str,
        by: Client | Worker,
        line: Line,
        work: Callable[[], object],
        *,
        places: int,
        who: str = "worker",
        learn: Callable[[Any], None] = lambda _: None,
        held: Held | None = None,
        claim: Claim | None = None,
    ) -> None:
        """`claim`: in whose name, where nobody holds it any more."""
        refused = lambda: self._forget(by, held)  # noqa: E731
        claim = held.claim if held else claim
        action = Action(what, who, by, line, line.begin(work), learn, refused, held, claim)
        self.actions.append(action)
        self._go(action, places)

    def _go(self, action: Action, places: int, fate: Any = "go on") -> None:
        line, commits = action.line, -places
        places = WHOLE if places < 0 else places
        while places > 0 and not line.idle and not (line.waits and fate == "go on"):
            line.go(places, fate)
            places, fate = line.left - (line.place != "statement"), "go on"
            self._look(action)
            self._free_the_waiting()
            commits -= line.place == "committed"
            if line.place == "committed" and commits == 0:
                fate = "lose connection"
        self._settle()

    def _kill(self, action: Action) -> None:
        action.line.kill()
        self._settle()

    def _settle(self) -> None:
        """Who is at its end is told so."""
        self._free_the_waiting()
        for action in [action for action in self.actions if action.line.idle]:
            self.actions.remove(action)
            self._hear(action)
        self._one_believer()

    def _free_the_waiting(self) -> None:
        """Whoever waited for a lock may have it now."""
        for action in self.actions:
            if action.line.waits:
                action.line.settle()

    def _hear(self, action: Action) -> None:
        error = action.answer.exception()
        if error is None:
            action.learn(action.answer.result())
        elif isinstance(error, Conflict | GaveUp if action.who == "client" else StaleFence):
            action.refused()
        elif isinstance(error, OperationalError) and isinstance(error.orig, DeadlockDetected):
            self._break(Broken(f"a deadlock: {action}"))
        elif not isinstance(error, Died | OperationalError):
            self._break(error if isinstance(error, Broken) else Broken(f"{action} crashed: {error!r}"))

    def _forget(self, by: Client | Worker, held: Held | None) -> None:
        if isinstance(by, Worker) and held in by.held:
            by.held.remove(held)

    def _look(self, action: Action) -> None:
        """After a commit: what has changed, and may it?"""
        if action.line.place != "committed":
            return
        before, self.jobs = self.jobs, self.world.look()
        change = Change(
            who=action.who,
            fence=action.claim.fence if action.claim else None,
            job_id=action.claim.job_id if action.claim else None,
            now=self.now,
            lease_seconds=LEASE_SECONDS,
            before=before,
            after=self.jobs,
        )
        try:
            promises.check(change)
            promises.one_job_a_request(self.jobs, RETRY_WINDOW.total_seconds())
            promises.within_the_limit(self.jobs, PROJECT_GPUS)
            promises.bytes_are_there(self.jobs, self.world.storage.stored)
        except Broken as broken:
            self._break(broken)

    def _one_believer(self) -> None:
        """By their own clocks, too, no two workers train one job."""
        believed = [
            held.claim.job_id
            for worker in self.workers
            for held in worker.held
            if held.ending is None and self.now < held.until
        ]
        if len(believed) != len(set(believed)):
            self._break(Broken(f"several workers train one job: {believed}"))

    def _break(self, error: BaseException) -> None:
        self.broken = True
        raise error

    def _everything_ends(self) -> None:
        """No accepted job is lost: one healthy worker, after everybody else died, brings each to its end."""
        lost = self.accepted.keys() - self.jobs.keys()
        assert not lost, f"accepted, and gone: {lost}"
        for job in self.world.finish(self.workers[0]).values():
            assert job.state in (*FINAL, "paused"), f"nobody brought it to its end: {job}"
