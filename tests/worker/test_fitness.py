"""When a worker takes no work, though it is free."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.service import poll_until
from worker import fitness
from worker import room as worker_room
from worker.fitness import Fitness
from worker.room import Room


def test_a_disk_that_does_not_answer_has_no_room(tmp_path: Path) -> None:
    assert Fitness(Room(tmp_path)).fit
    assert not Fitness(Room(tmp_path, tmp_path / "gone")).fit


def test_a_disk_that_timed_out_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(_: Path) -> os.statvfs_result:
        raise TimeoutError(errno.ETIMEDOUT, "as of a network file system")

    room = Room(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(worker_room, "os", SimpleNamespace(statvfs=time_out))
        assert room.free == 0
    poll_until(lambda: room.free > 0, "it answers")


def test_a_disk_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, asked, real = threading.Event(), [], os.statvfs

    def hang(path: Path) -> os.statvfs_result:
        asked.append(path)
        answer.wait()
        return real(path)

    monkeypatch.setattr(worker_room, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(worker_room, "os", SimpleNamespace(statvfs=hang))
    room = Room(tmp_path)
    try:
        assert room.free == room.free == 0
        assert len(asked) <= 1
    finally:
        answer.set()
    poll_until(lambda: room.free > 0, "a late answer counts")


def test_it_rests_ever_longer_until_something_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(fitness, "time", SimpleNamespace(monotonic=lambda: now))
    watched = Fitness(Room(tmp_path))
    watched.could_not_begin("job-0")
    assert watched.fit, "it may be the job's own fault"
    for number, rest in enumerate((5.0, 20.0, 80.0, 300.0, 300.0), start=1):
        watched.could_not_begin(f"job-{number}")
        now += rest - 0.1
        assert (watched.fit, watched.away) == (False, number > 1), "others hear of a rest that is worth it"
        now += 0.1
        assert watched.fit and not watched.away
    watched.began()
    watched.could_not_begin("job-8")
    watched.could_not_begin("job-9")
    now += 5.0
    assert watched.fit


def test_the_same_work_again_and_again_is_not_the_worker_s_fault(tmp_path: Path) -> None:
    watched = Fitness(Room(tmp_path))
    for _ in range(5):
        watched.could_not_begin("job-without-its-file")
        assert watched.fit
