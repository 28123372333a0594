"""Migration 0020 keeps an endpoint's old secret among others, and back."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import text

from migrations.run import downgrade, upgrade
from tests.conftest import Servers
from tests.migrations.old import database_at, insert


def test_an_old_secret_signs_as_long_as_before(servers: Servers) -> None:
    until = datetime(2030, 1, 2, 3, 4, 5, 678_000, UTC)
    with database_at(servers, "0019") as (url, connection):
        insert(connection, "webhook_endpoints", id="a", old_secret="whsec_old", old_secret_until=until)
        insert(connection, "webhook_endpoints", id="b")
        upgrade(url, "0020")
        found = connection.execute(text("SELECT id, old_secrets FROM webhook_endpoints"))
        rows = {row.id: row.old_secrets for row in found}
        assert rows["b"] == []
        (old,) = rows["a"]
        assert old["secret"] == "whsec_old"
        assert datetime.fromisoformat(old["until"]) == until
        downgrade(url, "0019")
        columns = text("SELECT id, old_secret, old_secret_until FROM webhook_endpoints ORDER BY id")
        assert [tuple(row) for row in connection.execute(columns)] == [("a", "whsec_old", until), ("b", None, None)]
