"""PostgreSQL goes away under a running job: shorter than the lease nothing happens, longer and the ranks stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest
from sqlalchemy import make_url

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
