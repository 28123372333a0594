"""The schema goes up, down and up again, and equals the ORM's tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from control_plane.tables import Base
from migrations.run import downgrade, upgrade
from tests.conftest import Servers


@pytest.fixture
def empty_url(servers: Servers) -> Iterator[str]:
    servers.execute("CREATE DATABASE empty")
    yield servers.url_of("empty")
    servers.execute("DROP DATABASE empty WITH (FORCE)")


def facts(url: str) -> tuple[set[str], list[str], list[object]]:
    """Tables, functions of ours, and the differences to the ORM."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            tables = set(inspect(connection).get_table_names()) - {"alembic_version"}
            functions = connection.scalars(
                text("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace")
            )
            context = MigrationContext.configure(connection, opts={"compare_server_default": True})
            return tables, list(functions), compare_metadata(context, Base.metadata)
    finally:
        engine.dispose()


def test_up_down_up(empty_url: str) -> None:
    for _ in range(2):
        upgrade(empty_url)
        assert facts(empty_url) == (set(Base.metadata.tables), ["dpo_now"], [])
        upgrade(empty_url)
        downgrade(empty_url, "base")
        tables, functions, _ = facts(empty_url)
        assert (tables, functions) == (set(), [])


def test_two_servers_that_start_together_migrate_in_turn(empty_url: str) -> None:
    migrate = [
        sys.executable,
        "-W",
        "error",
        "-c",
        "import sys; from migrations.run import upgrade; upgrade(sys.argv[1])",
    ]
    servers = [subprocess.Popen([*migrate, empty_url], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [server.communicate(timeout=60)[1] for server in servers]
    assert [server.returncode for server in servers] == [0, 0], answers
    assert facts(empty_url)[2] == []
