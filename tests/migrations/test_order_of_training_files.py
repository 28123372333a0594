"""Migration 0007 turns a job's files from an object, whose keys have no order, into a list, and back."""

from __future__ import annotations

from sqlalchemy import Connection, text

from migrations.run import downgrade, upgrade
from tests.conftest import Servers
from tests.migrations.old import database_at, insert


def files_of(connection: Connection) -> dict[str, object]:
    return {row.id: row.training_files for row in connection.execute(text("SELECT id, training_files FROM jobs"))}


def test_jobs_of_before_keep_their_files_and_weights(servers: Servers) -> None:
    with database_at(servers, "0006") as (old_url, connection):
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
