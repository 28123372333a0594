from __future__ import annotations

import pytest
from sqlalchemy import update

from control_plane import workers
from control_plane.database import Database, dpo_now
from control_plane.tables import Worker
from worker.alive import alive

FACTS = workers.Facts(id="worker-1", hostname="box", pid=7, device="cpu", slots=2)


@pytest.fixture
def registered(database: Database) -> Database:
    with database.transaction() as session:
        workers.register(session, FACTS)
    return database


def test_a_worker_that_beats_is_alive_on_its_own_host_alone(registered: Database) -> None:
    assert alive(registered, "box")
    assert not alive(registered, "another")


def test_one_that_said_goodbye_is_not(registered: Database) -> None:
    with registered.transaction() as session:
        workers.forget(session, FACTS.id)
    assert not alive(registered, "box")


def test_one_that_is_silent_is_not(registered: Database) -> None:
    with registered.transaction() as session:
        session.execute(update(Worker).values(last_seen=dpo_now() - workers.ALIVE))
    assert not alive(registered, "box")
