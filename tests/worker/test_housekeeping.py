"""What a worker does beside its work."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest

from control_plane.database import dpo_now
from control_plane.storage import file_key
from control_plane.tables import File
from tests.worker.stubs import World, eventually, stub_programs, supervisor
from worker import housekeeping
from worker import supervisor as supervisor_module


def expired(world: World) -> str:
    """The id of a new file whose time is over."""
    file_id = world.file("{}\n")
    with world.database.transaction() as session:
        session.get_one(File, file_id).expires_at = dpo_now() - timedelta(seconds=1)
    return file_id


def goes(world: World, file_id: str) -> None:
    eventually(lambda: not world.storage.exists(file_key(file_id)), f"{file_id} is gone")


def test_what_is_out_of_date_goes_now_and_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "RECONCILE_SECONDS", 0.1)
    monkeypatch.setattr(housekeeping, "TIDYING_SECONDS", 0.3)
    first, kept = expired(world), world.file("{}\n")
    with supervisor(world.settings, stub_programs([])):
        goes(world, first)
        goes(world, expired(world))
    assert world.storage.exists(file_key(kept))


def test_after_a_round_without_anything_tidying_rests(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    boss = supervisor_module.Supervisor(world.settings, stub_programs([]))
    house = boss._housekeeping
    now = 1000.0
    monkeypatch.setattr(housekeeping, "time", SimpleNamespace(monotonic=lambda: now))

    def left_after_a_round() -> bool:
        file_id = expired(world)
        house.go_round(draining=False)
        with world.database.transaction() as session:
            return session.get(File, file_id) is not None

    assert not left_after_a_round()
    assert not left_after_a_round(), "something went, so the next round looks again"
    house.go_round(draining=False)
    assert left_after_a_round(), "nothing went, so it rests"
    now += housekeeping.TIDYING_SECONDS
    assert not left_after_a_round()
    boss.stop()
    assert boss.run(), "told to stop, it ends at once and closes what it has open"
