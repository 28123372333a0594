"""Objects of a cache: a full disk here says nothing of the object, and PostgreSQL may be away while one is kept."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from control_plane.errors import Conflict, StaleFence
from control_plane.tables import TokenTable
from tests.worker.stubs import World
from worker import cached_objects
from worker.cached_objects import fetch, keep

BYTES = b"tokens"
SHA256 = hashlib.sha256(BYTES).hexdigest()
KEY = "private/tokens/project/table"


@pytest.fixture
def kept(world: World, tmp_path: Path) -> Path:
    with world.storage.writer(KEY) as sink:
        sink.write(BYTES)
    return tmp_path / "run" / "table"


def test_what_is_there_is_fetched(world: World, kept: Path) -> None:
    assert fetch(world.storage, KEY, SHA256, kept) == "here"
    assert kept.read_bytes() == BYTES


def test_other_bytes_and_no_bytes_are_damage(world: World, kept: Path) -> None:
    assert fetch(world.storage, KEY, "0" * 64, kept) == "damaged"
    world.storage.delete(KEY)
    assert fetch(world.storage, KEY, SHA256, kept) == "damaged"
    assert not kept.exists()


@pytest.mark.parametrize("where", ["copying", "reading it again"])
def test_a_full_disk_is_no_damage(world: World, kept: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "copying":
        monkeypatch.setattr("control_plane.storage.link_or_copy", full)
    else:
        monkeypatch.setattr(cached_objects, "sha256_of", full)
    assert fetch(world.storage, KEY, SHA256, kept) == "not now"
    assert not kept.exists()


def test_while_postgresql_is_away_nothing_is_lost(world: World, tmp_path: Path) -> None:
    """It stays in storage, and is made known when whoever keeps it tries again."""
    file, known = tmp_path / "made", list[str]()
    file.write_bytes(BYTES)

    def away(session: Session) -> None:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(OperationalError):
        keep(world.database, world.storage, KEY, file, away)
    keep(world.database, world.storage, KEY, file, lambda _: known.append(KEY))
    assert known == [KEY]
    assert fetch(world.storage, KEY, SHA256, tmp_path / "found") == "here"


@pytest.mark.parametrize("error", [StaleFence, Conflict])
def test_under_a_stale_fence_or_after_a_day_nothing_is_kept(
    world: World, tmp_path: Path, error: type[Exception]
) -> None:
    file = tmp_path / "made"
    file.write_bytes(BYTES)

    def refuse(_: Session) -> None:
        raise error("it is another worker's now, or gone")

    with pytest.raises(error):
        keep(world.database, world.storage, KEY, file, refuse)
    assert not world.storage.exists(KEY)


def test_what_is_known_stays_when_its_repetition_comes_too_late(world: World, tmp_path: Path) -> None:
    """The answer to the first commit was lost, so it is kept again; meanwhile the job is another worker's."""
    file, job_id = tmp_path / "made", world.job()
    file.write_bytes(BYTES)

    def make_known(session: Session) -> None:
        of = {"project_id": world.project_id, "job_id": job_id, "content": "", "file_ids": []}
        session.add(TokenTable(key=KEY, bytes=len(BYTES), sha256=SHA256, **of))

    def stale(_: Session) -> None:
        raise StaleFence("it is another worker's now")

    keep(world.database, world.storage, KEY, file, make_known)
    with pytest.raises(StaleFence):
        keep(world.database, world.storage, KEY, file, stale)
    assert fetch(world.storage, KEY, SHA256, tmp_path / "found") == "here"
