"""PostgreSQL goes away under a running job: shorter than the lease nothing happens, longer and the ranks stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, select, text

from control_plane.tables import Event, Removal
from dpo_core.run_directory import read_lines
from tests.cli.running import alive
from tests.conftest import Servers
from tests.stub_trainer import chain
from tests.worker.stubs import World, eventually, stub_programs, supervisor


@contextmanager
def away(servers: Servers, world: World) -> Iterator[None]:
    """PostgreSQL closes every connection to the world's database and takes no new one."""
    name = make_url(world.settings.database_url.get_secret_value()).database
    servers.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    servers.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608 - the test's own name
    yield
    servers.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@contextmanager
def files_locked(world: World) -> Iterator[Callable[[], bool]]:
    """Nobody reads the table of files as long as this connection lives; yields whether somebody tries to."""
    url = world.settings.database_url.get_secret_value().replace("+psycopg", "")
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'files'::regclass"
    with closing(psycopg.connect(url)) as connection:
        connection.execute("LOCK TABLE files IN ACCESS EXCLUSIVE MODE")
        yield lambda: connection.execute(waiting).fetchone() != (0,)


def refused(caplog: pytest.LogCaptureFixture) -> Callable[[], bool]:
    return lambda: any("PostgreSQL doesn't answer" in record.getMessage() for record in caplog.records)


def test_a_short_absence_costs_nothing(servers: Servers, world: World, caplog: pytest.LogCaptureFixture) -> None:
    with supervisor(world.settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = world.job()
        world.held(job_id, step=2)
        with away(servers, world):
            eventually(refused(caplog), "the worker noticed")
        world.go.touch()
        world.reaches(job_id, "succeeded", "failed")
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "succeeded")]


def test_an_absence_while_the_inputs_are_fetched_is_waited_for(servers: Servers, world: World) -> None:
    job_id = world.job()
    with files_locked(world) as somebody_waits, supervisor(world.settings, stub_programs()):
        eventually(somebody_waits, "the attempt asks for its files")
        with away(servers, world):
            pass
        world.reaches(job_id, "succeeded", "failed")
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "succeeded")]


def test_a_lease_that_cannot_be_renewed_stops_the_ranks(servers: Servers, world: World) -> None:
    settings = world.settings.model_copy(update={"lease_seconds": 3.0})
    with supervisor(settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = world.job()
        world.held(job_id, step=2)
        with away(servers, world):
            world.nothing_left()
        world.go.touch()
        world.reaches(job_id, "succeeded", "failed")
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "lost"), ("train", "succeeded")]
    assert world.final_weights(job_id) == chain(6, job_id)


def newest_run(world: World, job_id: str) -> Path:
    return max(world.runs.glob(f"{job_id}/*"), key=lambda folder: int(folder.name))


def metrics_on_disk(run: Path) -> list[int]:
    return [line["step"] for line, _ in read_lines(run / "metrics.jsonl", 0)]


def test_what_is_measured_meanwhile_is_relayed_later_each_once_and_in_order(servers: Servers, world: World) -> None:
    options = ["--tells", "--checkpoint-every=6", "--hold-at=3", f"--until={world.go}"]
    with supervisor(world.settings, stub_programs(options)):
        job_id = world.job()
        eventually(lambda: world.measured(job_id) == [0, 1, 2], "it is held")
        run = newest_run(world, job_id)
        with away(servers, world):
            world.go.touch()
            eventually(lambda: metrics_on_disk(run) == list(range(6)), "the trainer goes on without PostgreSQL")
        world.reaches(job_id, "succeeded", "failed")
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "succeeded")]
    assert world.measured(job_id) == list(range(6))
    assert messages(world, job_id, "stub_step") == ["0", "1", "2", "3", "4", "5"]


def test_what_was_made_beyond_the_lease_is_not_published(servers: Servers, world: World) -> None:
    """The run ends well while nobody can be told: its worker gives it up by its own clock, and another attempt makes
    the same again."""
    settings = world.settings.model_copy(update={"lease_seconds": 3.0})
    with supervisor(settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = world.job()
        world.held(job_id, step=2)
        run = newest_run(world, job_id)
        lost = int(run.name)
        with away(servers, world):
            world.go.touch()
            eventually(lambda: (run / "checkpoints" / "step-6").exists() or not run.exists(), "the last checkpoint")
            world.nothing_left()
        world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
        assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "lost"), ("train", "succeeded")]
        assert [(it.step, it.fence) for it in world.checkpoints(job_id)] == [(2, lost), (4, lost + 1), (6, lost + 1)]
        assert world.final_weights(job_id) == chain(6, job_id)
    with world.database.transaction() as session:
        expected = set(session.scalars(select(Removal.prefix).where(Removal.expected)))
    stored = world.storage.folder / "checkpoints" / job_id / str(lost)
    assert {f"checkpoints/{job_id}/{lost}/{path.name}" for path in stored.iterdir()} - expected == {
        f"checkpoints/{job_id}/{lost}/step-2"
    }, "what nobody made known goes by itself"


def test_ranks_stop_by_themselves_when_their_worker_waits_for_a_lock(world: World) -> None:
    """Renewing takes the job's row lock. Whoever holds that stops the worker's one thread, not the ranks' watches."""
    settings = world.settings.model_copy(update={"lease_seconds": 3.0})
    with supervisor(settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        job_id = world.job()
        world.held(job_id, step=2)
        rank = world.rank()
        with world.database.transaction() as session:
            session.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": job_id})
            eventually(lambda: not alive(rank), "the rank is gone")
        world.go.touch()
        world.reaches(job_id, "succeeded", "failed")
    assert [outcome for _, outcome in world.outcomes(job_id)[-1:]] == ["succeeded"]
    assert world.final_weights(job_id) == chain(6, job_id)


def messages(world: World, job_id: str, code: str) -> list[str]:
    """Of the job's events with that code, in order."""
    query = select(Event.message).where(Event.job_id == job_id, Event.code == code).order_by(Event.sequence)
    with world.database.transaction() as session:
        return list(session.scalars(query))
