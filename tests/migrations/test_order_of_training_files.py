"""Migration 0007 turns a job's files from an object, whose keys have no order, into a list, and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine, text

from migrations.run import downgrade, upgrade
from tests.conftest import Servers

ANYTHING = {"text": "''", "bigint": "0", "jsonb": "'{}'", "boolean": "false"}
"""A value for each type of a column that must have one."""


@pytest.fixture
def old_url(servers: Servers) -> Iterator[str]:
    """A database as it was before."""
    servers.execute("CREATE DATABASE old")
    upgrade(servers.url_of("old"), "0006")
    yield servers.url_of("old")
    servers.execute("DROP DATABASE old WITH (FORCE)")


@pytest.fixture
def connection(old_url: str) -> Iterator[Connection]:
    engine = create_engine(old_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("SET session_replication_role = replica"))  # rows without those that they belong to
        yield connection
    engine.dispose()


def insert(connection: Connection, table: str, **values: object) -> None:
    """A row with these values, and anything in other columns that must have some."""
    query = text(
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_name = :table AND is_nullable = 'NO' AND column_default IS NULL"
    )
    needed = {name: ANYTHING[kind] for name, kind in connection.execute(query, {"table": table}) if name not in values}
    names = ", ".join([*values, *needed])
    given = ", ".join([*(f":{name}" for name in values), *needed.values()])
    statement = text(f"INSERT INTO {table} ({names}) VALUES ({given})")  # noqa: S608 (the test's own names)
    connection.execute(statement, values)


def files_of(connection: Connection) -> dict[str, object]:
    return {row.id: row.training_files for row in connection.execute(text("SELECT id, training_files FROM jobs"))}


def test_jobs_of_before_keep_their_files_and_weights(old_url: str, connection: Connection) -> None:
    insert(connection, "jobs", id="one", result_name="1")
    insert(connection, "jobs", id="several", result_name="2", training_files='{"file-a": 0.5, "file-b": 2}')
    insert(connection, "checks", id="estimate", kind="estimate", digest="1")
    insert(connection, "checks", id="file", kind="file", digest="2")
    before = files_of(connection)
    upgrade(old_url, "0007")
    after = files_of(connection)
    assert after["one"] is None
    assert sorted(map(str, after["several"])) == [
        "{'id': 'file-a', 'weight': 0.5}",
        "{'id': 'file-b', 'weight': 2}",
    ]
    assert list(connection.scalars(text("SELECT id FROM checks"))) == ["file"], "estimates are asked for again"
    downgrade(old_url, "0006")
    assert files_of(connection) == before
