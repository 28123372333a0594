"""What PostgreSQL ends or refuses for a reason of its own looks like a PostgreSQL that is away: tried again."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from control_plane.database import IDLE_SECONDS, WORKER_IDLE_SECONDS, Database

IDLE = "idle_in_transaction_session_timeout"


def lives(database: Database, pid: int) -> bool:
    with database.transaction() as session:
        found = session.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid})
    return found == 1


LIMIT = text(f"SELECT set_config('{IDLE}', :limit, true)")


def one_row(session: Session) -> None:
    session.execute(LIMIT, {"limit": "50ms"})


def several_rows(session: Session) -> None:
    """psycopg would pipeline them, and PostgreSQL never begin to count."""
    session.execute(LIMIT, [{"limit": "60s"}, {"limit": "50ms"}])


@pytest.mark.parametrize("last", [one_row, several_rows])
def test_a_frozen_transaction_is_ended_and_looks_like_a_lost_connection(
    database: Database, last: Callable[[Session], None]
) -> None:
    deadline = time.monotonic() + 30
    with pytest.raises(OperationalError, match="idle-in-transaction"), database.transaction() as frozen:
        assert frozen.scalar(text(f"SHOW {IDLE}")) == f"{IDLE_SECONDS}s"
        pid = frozen.scalar(text("SELECT pg_backend_pid()"))
        assert pid is not None
        last(frozen)
        while lives(database, pid):
            assert time.monotonic() < deadline, "PostgreSQL ends the session"
            time.sleep(0.02)
        frozen.execute(text("SELECT 1"))
    with database.transaction() as session:
        assert session.scalar(text("SELECT 1")) == 1


def test_how_long_a_transaction_may_stand_still_can_be_said(database_url: str) -> None:
    shorter = Database(database_url, idle_seconds=WORKER_IDLE_SECONDS)
    with shorter.transaction() as session:
        assert session.scalar(text(f"SHOW {IDLE}")) == f"{WORKER_IDLE_SECONDS}s"
    shorter.dispose()


def test_a_server_that_takes_no_writes_looks_like_one_that_is_away(database: Database) -> None:
    """As after a failover, when the connections still lead to the server that was the first."""
    with pytest.raises(OperationalError, match="read-only transaction"), database.transaction() as session:
        session.execute(text("SET TRANSACTION READ ONLY"))
        session.execute(text("DELETE FROM jobs"))
    with database.transaction() as session:
        assert session.scalar(text("SHOW transaction_read_only")) == "off"
