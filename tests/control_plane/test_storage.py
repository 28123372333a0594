from __future__ import annotations

from pathlib import Path

import pytest

from control_plane.errors import InvalidRequest, StorageFull
from control_plane.storage import DirectoryStorage, checkpoint_prefix, file_key, open_storage, state_prefix

KEY = file_key("file-1")


@pytest.fixture
def storage(tmp_path: Path) -> DirectoryStorage:
    return DirectoryStorage(tmp_path / "storage")


def write(storage: DirectoryStorage, key: str, content: bytes) -> None:
    with storage.writer(key) as sink:
        sink.write(content)


def files_in(storage: DirectoryStorage) -> list[str]:
    return sorted(path.relative_to(storage.folder).as_posix() for path in storage.folder.rglob("*") if path.is_file())


def test_an_object_is_seen_only_once_it_is_whole(storage: DirectoryStorage) -> None:
    with storage.writer(KEY) as sink:
        sink.write(b"half")
        assert not storage.exists(KEY)
        assert list(storage.keys("files")) == []
    assert storage.exists(KEY)
    assert storage.size(KEY) == 4
    with storage.open(KEY) as stream:
        assert stream.read() == b"half"


def test_a_failed_write_leaves_nothing_and_spares_what_was_there(storage: DirectoryStorage) -> None:
    write(storage, KEY, b"old")
    with pytest.raises(RuntimeError), storage.writer(KEY) as sink:
        sink.write(b"new")
        raise RuntimeError
    assert files_in(storage) == [KEY]
    with storage.open(KEY) as stream:
        assert stream.read() == b"old"


def test_put_and_fetch_share_bytes_on_one_file_system(storage: DirectoryStorage, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(b"w" * 1000)
    for _ in range(2):  # putting it again changes nothing, and leaves nothing aside
        storage.put_file(KEY, source)
        assert files_in(storage) == [KEY]
    target = tmp_path / "fetched"
    target.write_bytes(b"older")
    storage.fetch(KEY, target)
    assert target.read_bytes() == source.read_bytes()
    assert source.samefile(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fetched", "storage", "weights"]
    source.unlink()
    assert storage.size(KEY) == 1000


def test_prefixes_are_whole_folders(storage: DirectoryStorage) -> None:
    one, ten = checkpoint_prefix("ftjob-1", 2, 1), checkpoint_prefix("ftjob-1", 2, 10)
    for key in (f"{one}/model/config.json", f"{one}/model/a.safetensors", f"{ten}/model/config.json"):
        write(storage, key, b"x")
    write(storage, f"{state_prefix('ftjob-1', 2, 1)}/state/rank-0.pt", b"x")
    assert list(storage.keys(one)) == [f"{one}/model/a.safetensors", f"{one}/model/config.json"]
    storage.delete_prefix(one)
    storage.delete_prefix(one)
    assert list(storage.keys(one)) == []
    assert storage.exists(f"{ten}/model/config.json")
    assert storage.exists(f"{state_prefix('ftjob-1', 2, 1)}/state/rank-0.pt")


def test_missing_objects(storage: DirectoryStorage, tmp_path: Path) -> None:
    storage.delete(KEY)
    assert not storage.exists(KEY)
    for call in (storage.open, storage.size):
        with pytest.raises(FileNotFoundError):
            call(KEY)
    with pytest.raises(FileNotFoundError):
        storage.fetch(KEY, tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        storage.put_file(KEY, tmp_path / "absent")
    assert files_in(storage) == []


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".unfinished/x", "a/.b", "a\0", "ä"]
)
def test_malformed_keys_are_refused(storage: DirectoryStorage, key: str) -> None:
    with pytest.raises(ValueError, match="no storage key"):
        storage.open(key)
    with pytest.raises(ValueError, match="no storage key"):
        storage.delete_prefix(key)


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(storage: DirectoryStorage) -> None:
    left = storage.folder / ".unfinished" / "left"
    left.write_bytes(b"half")
    with storage.writer(KEY) as sink:
        sink.write(b"x")
        assert storage.remove_abandoned() == 0, "too young: its writer may not have locked it yet"
        assert storage.remove_abandoned(seconds=-1.0) == 1
        assert not left.exists()
    assert storage.exists(KEY)


def test_storage_urls(tmp_path: Path) -> None:
    assert open_storage(f"file://{tmp_path}/with%20space").folder == tmp_path / "with space"
    for url in ("s3://bucket", "file:relative", "file://host/folder", str(tmp_path)):
        with pytest.raises(InvalidRequest, match="file:///absolute/folder"):
            open_storage(url)


def test_a_full_disk_has_its_own_error(storage: DirectoryStorage) -> None:
    refused = pytest.raises(StorageFull, match="nothing of this was kept")
    with refused, storage.writer(KEY), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")  # the kernel's own ENOSPC
    assert not storage.exists(KEY)
    assert list(storage.folder.glob(".unfinished/*")) == []
