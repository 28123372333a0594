"""A database as it was before a migration, and rows for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, create_engine, text

from migrations.run import upgrade
from tests.conftest import Servers

ANYTHING = {
    "text": "''",
    "bigint": "0",
    "jsonb": "'{}'",
    "boolean": "false",
    "timestamp with time zone": "now()",
}
"""A value for each type of a column that must have one."""


@contextmanager
def database_at(servers: Servers, revision: str) -> Iterator[tuple[str, Connection]]:
    """Its URL, and a connection that takes rows without those that they belong to."""
    servers.execute("CREATE DATABASE old")
    url = servers.url_of("old")
    upgrade(url, revision)
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text("SET session_replication_role = replica"))
            yield url, connection
    finally:
        engine.dispose()
        servers.execute("DROP DATABASE old WITH (FORCE)")


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
