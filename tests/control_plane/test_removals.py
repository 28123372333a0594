"""Bytes go after the commit that made them useless, however often a process dies in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from control_plane import publication, removals
from control_plane.database import Database
from control_plane.errors import Conflict
from control_plane.storage import DirectoryStorage, file_key
from dpo_core.run_directory import Manifest
from tests.control_plane.rows import noted, set_clock_ahead, started

FOLDER = "checkpoints/ftjob-1/1/step-2"
KEYS = [f"{FOLDER}/model/config.json", f"{FOLDER}/model/model.safetensors", file_key("file-1")]


@pytest.fixture
def storage(tmp_path: Path) -> DirectoryStorage:
    storage = DirectoryStorage(tmp_path)
    for key in [*KEYS, file_key("file-2")]:
        with storage.writer(key) as sink:
            sink.write(b"x")
    return storage


def test_objects_and_folders_go_and_the_rest_stays(database: Database, storage: DirectoryStorage) -> None:
    for _ in range(2):  # noted again after it was carried out: nothing left to do, and no error
        with database.transaction() as session:
            for prefix in (FOLDER, file_key("file-1"), file_key("file-1")):
                removals.note(session, prefix)
        removals.carry_out(database, storage)
        assert list(storage.keys("files")) == [file_key("file-2")]
        assert list(storage.keys("checkpoints")) == []
        with database.transaction() as session:
            assert noted(session) == []


def test_a_rollback_keeps_the_bytes(database: Database, storage: DirectoryStorage) -> None:
    with pytest.raises(RuntimeError), database.transaction() as session:
        removals.note(session, FOLDER)
        raise RuntimeError
    removals.carry_out(database, storage)
    assert all(storage.exists(key) for key in KEYS)


def test_what_another_process_removes_is_left_to_it(database: Database, storage: DirectoryStorage) -> None:
    with database.transaction() as session:
        removals.note(session, FOLDER)
    with database.transaction() as other:
        other.connection().exec_driver_sql("SELECT 1 FROM removals FOR UPDATE")
        removals.carry_out(database, storage)
        assert all(storage.exists(key) for key in KEYS)
    removals.carry_out(database, storage)
    assert list(storage.keys(FOLDER)) == []


def test_what_storage_refuses_stays_noted(
    database: Database, storage: DirectoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    stubborn = storage.folder / "files" / "file-0" / "x"
    stubborn.parent.mkdir()
    stubborn.parent.parent.joinpath("elsewhere").symlink_to(stubborn.parent)  # rmtree refuses a link to a folder
    with database.transaction() as session:
        removals.note(session, "files/elsewhere")
        removals.note(session, file_key("file-1"))
    removals.carry_out(database, storage)
    assert "files/elsewhere could not be removed" in caplog.text
    assert not storage.exists(file_key("file-1"))
    with database.transaction() as session:
        assert noted(session) == ["files/elsewhere"]


def test_what_was_stored_and_never_made_known_goes_after_a_day(database: Database, storage: DirectoryStorage) -> None:
    """As after `kill -9` between the two: there is no row, and nobody comes back."""
    with database.transaction() as session:
        removals.expect(session, FOLDER, file_key("file-1"))
    removals.carry_out(database, storage)
    assert all(storage.exists(key) for key in KEYS), "it may still be made known"
    with database.transaction() as session:
        set_clock_ahead(session, 86_401)
    removals.carry_out(database, storage)
    assert not any(storage.exists(key) for key in KEYS)
    assert storage.exists(file_key("file-2"))


def test_what_is_made_known_stays(stocked: Database, storage: DirectoryStorage) -> None:
    with stocked.transaction() as session:
        removals.expect(session, FOLDER, file_key("file-1"))
    with stocked.transaction() as session:
        removals.keep(session, FOLDER, file_key("file-1"))
        assert noted(session) == []
    with pytest.raises(RuntimeError), stocked.transaction() as session:
        removals.expect(session, FOLDER)
        removals.keep(session, FOLDER)
        raise RuntimeError
    with stocked.transaction() as session:
        set_clock_ahead(session, 86_401)
    removals.carry_out(stocked, storage)
    assert all(storage.exists(key) for key in KEYS)


def test_who_comes_after_a_day_is_told(database: Database, storage: DirectoryStorage) -> None:
    with database.transaction() as session:
        removals.expect(session, FOLDER)
        set_clock_ahead(session, 86_401)
    removals.carry_out(database, storage)
    with database.transaction() as session, pytest.raises(Conflict, match="begin anew"):
        removals.keep(session, FOLDER)


def test_what_is_known_and_expected_once_more_stays(stocked: Database, storage: DirectoryStorage) -> None:
    """A worker whose commit was not answered stores the same again, and may die at that."""
    claim = started(stocked)
    names = (f"checkpoints/{claim.job_id}/1/step-2", f"private/{claim.job_id}/1/step-2", file_key("file-1"))
    manifest = Manifest(step=2, kind="full", files=[])
    with stocked.transaction() as session:
        publication.publish_checkpoint(session, claim, manifest, names[0])
        removals.expect(session, *names)
        set_clock_ahead(session, 86_401)
    for name in names[:2]:
        with storage.writer(f"{name}/x") as sink:
            sink.write(b"x")
    removals.carry_out(stocked, storage)
    assert [storage.exists(key) for key in (f"{names[0]}/x", f"{names[1]}/x", names[2])] == [True, True, True]
    with stocked.transaction() as session:
        assert noted(session) == []
        removals.note(session, names[2])  # what is said to be useless goes, whatever a row says
    removals.carry_out(stocked, storage)
    assert not storage.exists(names[2])
