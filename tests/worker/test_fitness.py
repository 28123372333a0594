"""When a worker takes no work, though it is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker import fitness
from worker.fitness import Fitness
from worker.room import Room


def test_a_disk_that_does_not_answer_has_no_room(tmp_path: Path) -> None:
    assert Fitness(Room(tmp_path)).fit
    assert not Fitness(Room(tmp_path, tmp_path / "gone")).fit


def test_it_rests_ever_longer_until_something_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(fitness.time, "monotonic", lambda: now)
    watched = Fitness(Room(tmp_path))
    for rest in (5.0, 20.0, 80.0, 300.0, 300.0):
        watched.could_not_begin()
        now += rest - 0.1
        assert not watched.fit
        now += 0.1
        assert watched.fit
    watched.began()
    watched.could_not_begin()
    now += 5.0
    assert watched.fit
