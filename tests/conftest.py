"""Fixtures for every suite: a real PostgreSQL and Redis of the test session, and an empty database per test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import hypothesis
import psycopg
import pytest
from pydantic import SecretStr

from cli.servers import postgres, redis_server
from control_plane.database import Database
from control_plane.settings import Settings
from control_plane.tables import Base
from migrations.run import upgrade
from tests.makers import make_tiny_model


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, and so would every program that a test starts and interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tests fill the cores by themselves, and their models are too small for a second thread.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # No test asserts wall-clock time, and on a busy machine Hypothesis would.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=slow)
    hypothesis.settings.load_profile("any machine")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes name no test: packed ones hold the time, and every process must know a test by the same name."""
    return argname if isinstance(val, bytes) else None


@dataclass(frozen=True)
class Servers:
    database_url: str
    """SQLAlchemy URL of the maintenance database `postgres`."""
    redis_url: str

    def url_of(self, database: str) -> str:
        return self.database_url.replace("@/postgres?", f"@/{database}?")

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.database_url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    # Not below pytest's own folder: each pytest that starts closes that to other users, and root's PostgreSQL is one.
    with TemporaryDirectory(prefix="dpo-test-servers-") as folder:
        yield from run_servers(Path(folder))


def run_servers(data: Path) -> Iterator[Servers]:
    database, database_url = postgres(data, print)
    database.argv += ["-c", "fsync=off", "-c", "full_page_writes=off"]  # no test cuts the machine's power
    broker, redis_url = redis_server(data)
    for part in (database, broker):
        part.start()
    try:
        for part in (database, broker):
            part.wait_ready()
        yield Servers(database_url, redis_url)
    finally:
        broker.stop()
        database.stop()


@pytest.fixture(scope="session")
def migrated_template(servers: Servers) -> str:
    """A migrated database that every test copies: a copy takes milliseconds."""
    servers.execute("CREATE DATABASE migrated")
    upgrade(servers.url_of("migrated"))
    return "migrated"


@pytest.fixture
def database_url(servers: Servers, migrated_template: str) -> Iterator[str]:
    name = f"test_{uuid4().hex[:12]}"
    servers.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    yield servers.url_of(name)
    servers.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def shared_database_url(servers: Servers, migrated_template: str) -> str:
    servers.execute(f"CREATE DATABASE shared TEMPLATE {migrated_template}")
    return servers.url_of("shared")


@pytest.fixture
def emptied_database_url(shared_database_url: str) -> Iterator[str]:
    """A database whose rows are deleted after the test: much quicker than a copy.

    For suites whose tests leave no process behind that still works in it; they name it `database_url`.
    """
    url = shared_database_url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        (clock,) = connection.execute("SELECT pg_get_functiondef('dpo_now'::regproc)").fetchone() or ("",)
        yield shared_database_url
        connection.execute("SET lock_timeout = '10s'")
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(f'DELETE FROM "{table.name}"')  # type: ignore[call-overload]  # noqa: S608 - our own names
        connection.execute(clock)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture
def redis_url(servers: Servers) -> str:
    return servers.redis_url


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    storage = tmp_path / "storage"
    storage.mkdir()
    return Settings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_url),
        storage_url=f"file://{storage}",
        port=0,
        cpu_slots=2,
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's folder. Read only: it is shared."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
