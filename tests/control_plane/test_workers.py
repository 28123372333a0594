"""Which workers there are, what they say of themselves, and whose a GPU is."""

from __future__ import annotations

from control_plane import leases, workers
from control_plane.database import Database
from control_plane.job_states import State
from control_plane.workers import Condition, Facts, Largest
from tests.control_plane.rows import job_in, set_clock_ahead

GPUS = ("GPU-a", "GPU-b")


def register(database: Database, *names: str, slots: int = 2) -> None:
    with database.transaction() as session:
        for name in names:
            workers.register(session, Facts(name, "host", 1, "cuda", slots))


def beat(database: Database, name: str, **condition: object) -> dict[str, str]:
    with database.transaction() as session:
        return workers.beat(session, name, Condition(**{"usable": 2, **condition}))  # type: ignore[arg-type]


def room(database: Database, other_than: str | None = None) -> int:
    with database.transaction() as session:
        return workers.room(session, other_than=other_than)


def test_the_older_worker_keeps_a_gpu_that_two_of_them_see(database: Database) -> None:
    register(database, "worker-1", "worker-2")
    assert beat(database, "worker-1", gpus=GPUS) == {}
    assert beat(database, "worker-2", gpus=("GPU-b", "GPU-c")) == {"GPU-b": "worker-1"}
    assert beat(database, "worker-1", gpus=GPUS) == {}


def test_it_goes_to_the_other_one_when_the_older_says_goodbye_or_is_silent(database: Database) -> None:
    register(database, "worker-1", "worker-2", "worker-3")
    beat(database, "worker-1", gpus=GPUS)
    beat(database, "worker-2", gpus=GPUS)
    with database.transaction() as session:
        workers.forget(session, "worker-1")
    assert beat(database, "worker-2", gpus=GPUS) == {}
    with database.transaction() as session:
        set_clock_ahead(session, 16)
    assert beat(database, "worker-3", gpus=GPUS) == {}


def test_it_is_not_kept_for_as_long_as_a_clock_was_ahead(database: Database) -> None:
    """PostgreSQL's clock was an hour ahead when the older one was heard of last, and was set right then."""
    register(database, "worker-1", "worker-2")
    for seconds, kept in ((3600, GPUS), (0, GPUS), (16, ())):
        with database.transaction() as session:
            set_clock_ahead(session, seconds)
        if seconds == 3600:
            beat(database, "worker-1", gpus=GPUS)
        assert beat(database, "worker-2", gpus=GPUS) == dict.fromkeys(kept, "worker-1")


def test_room_counts_what_runs_what_is_out_and_who_stops(stocked: Database) -> None:
    register(stocked, "worker-1", slots=4)
    assert room(stocked) == 4
    with stocked.transaction() as session:
        job_in(session, State.queued, resources={"gpus": 1})
        assert leases.claim(session, worker_id="worker-1", free=4, total=4, lease_seconds=60) is not None
    assert (room(stocked), room(stocked, other_than="worker-1")) == (3, 0)
    beat(stocked, "worker-1", usable=3, gpus=GPUS, out={"GPU-a": "it has to be reset"})
    assert room(stocked) == 2
    beat(stocked, "worker-1", usable=3, draining=True)
    assert room(stocked) == 0


def test_the_largest_worker_is_counted_without_what_is_out(database: Database) -> None:
    register(database, "worker-1", slots=4)
    beat(database, "worker-1", usable=3)
    with database.transaction() as session:
        assert workers.largest(session) == Largest(alive=3, ever=4)
    beat(database, "worker-1", usable=3, draining=True)
    with database.transaction() as session:
        assert workers.largest(session) == Largest(alive=0, ever=4)
