"""Where bytes live: uploaded files and checkpoints, under keys that this service makes itself.

    files/{file_id}                                      an uploaded file
    uploads/{upload_id}/{part_id}                        a part of a file that is being uploaded
    checkpoints/{job_id}/{fence}/step-{N}/model/…        a checkpoint's model: what users download
    checkpoints/{job_id}/merged/{check_id}-{fence}/model/…  an adapter's merged weights: another model
    private/{job_id}/{fence}/step-{N}/state/…            the state to resume from; no route serves it
    private/{job_id}/{fence}/log.txt                     what the attempt's processes printed
    private/reference/{project_id}/{group}/{shard}       measured reference log-probabilities; nor these
    private/tokens/{project_id}/{content}/{table}        rendered and tokenized data; nor this

A key is made of ids, never of a user's string. An object is seen whole or not at all, and once it is
seen it survives a power cut.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from control_plane.errors import InvalidRequest, StorageFull
from control_plane.ids import new_id
from dpo_core.run_directory import sync_folder

ABANDONED_SECONDS = 60.0
"""Nobody takes longer between making an unfinished object and locking it."""
UNLOCKABLE_SECONDS = 24 * 3600.0
"""How old an unfinished object has to be where the file system has no locks."""
# A segment never starts with a dot: no "..", and no key reaches the folder of unfinished objects.
_KEY = re.compile(r"(?!\.)[A-Za-z0-9._-]+(/(?!\.)[A-Za-z0-9._-]+)*")


def file_key(file_id: str) -> str:
    return f"files/{file_id}"


def upload_prefix(upload_id: str) -> str:
    return f"uploads/{upload_id}"


def checkpoint_prefix(job_id: str, fence: int, step: int) -> str:
    return f"checkpoints/{job_id}/{fence}/step-{step}"


def merged_prefix(job_id: str, check_id: str, fence: int) -> str:
    return f"checkpoints/{job_id}/merged/{check_id}-{fence}"


def state_prefix(job_id: str, fence: int, step: int) -> str:
    return f"private/{job_id}/{fence}/step-{step}"


def log_key(job_id: str, fence: int) -> str:
    return f"private/{job_id}/{fence}/log.txt"


def reference_prefix(project_id: str, group: str) -> str:
    return f"private/reference/{project_id}/{group}"


def tokens_prefix(project_id: str, content: str) -> str:
    return f"private/tokens/{project_id}/{content}"


def job_prefixes(job_id: str) -> tuple[str, str]:
    """Everything that a job left: its checkpoints, and what is private."""
    return f"checkpoints/{job_id}", private_prefix(job_id)


def private_prefix(job_id: str) -> str:
    """A job's states to resume from, and its logs."""
    return f"private/{job_id}"


def project_prefixes(project_id: str) -> tuple[str, str]:
    """What a project's jobs share."""
    return f"private/reference/{project_id}", f"private/tokens/{project_id}"


class Storage(Protocol):
    """Objects by key. A missing key is FileNotFoundError, a malformed one ValueError."""

    def writer(self, key: str) -> AbstractContextManager[BinaryIO]:
        """A sink for one object, which appears durably when the block ends; an exception leaves nothing.

        Raises StorageFull where there is no room.
        """

    def put_file(self, key: str, path: Path) -> None:
        """Stores a local file, durably; may share its bytes, so nobody may write to `path` afterwards."""

    def open(self, key: str) -> BinaryIO: ...

    def size(self, key: str) -> int:
        """Bytes of the object."""

    def exists(self, key: str) -> bool: ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key below the folder `prefix`, sorted; none is no error."""

    def fetch(self, key: str, path: Path) -> None:
        """Puts the object at the local `path`, whole; may share bytes, so nobody may write to `path`."""

    def delete(self, key: str) -> None:
        """Removes the object; a missing one is no error."""

    def delete_prefix(self, prefix: str) -> None:
        """Removes the object `prefix` and every object below the folder of that name; none is no error."""

    def remove_abandoned(self) -> int:
        """Removes what killed processes left half-made; says how much."""


class DirectoryStorage:
    """Storage in a local (or shared) folder; equal file systems share bytes by hard links."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unfinished = folder / ".unfinished"
        self._unfinished.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def writer(self, key: str) -> Iterator[BinaryIO]:
        target, aside = self._path(key), self._aside()
        try:
            with open(aside, "xb") as file:
                _lock(file)
                yield file
                file.flush()
                os.fsync(file.fileno())
            self._reveal(aside, target)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageFull(
                "The server's storage is full, so nothing of this was kept. Delete files or checkpoints that nobody "
                "needs, or ask the operator for more room."
            ) from error
        finally:
            aside.unlink(missing_ok=True)

    def put_file(self, key: str, path: Path) -> None:
        target, aside = self._path(key), self._aside()
        try:
            with _linked_or_copied(path, aside) as file:
                os.fsync(file.fileno())
                self._reveal(aside, target)
        finally:
            aside.unlink(missing_ok=True)  # a rename onto another link of the same bytes leaves it

    def open(self, key: str) -> BinaryIO:
        return open(self._path(key), "rb")

    def size(self, key: str) -> int:
        return self._path(key).stat().st_size

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def keys(self, prefix: str) -> Iterator[str]:
        root = self._path(prefix)
        found = [path for path in root.rglob("*") if path.is_file()]
        yield from sorted(path.relative_to(self.folder).as_posix() for path in found)

    def fetch(self, key: str, path: Path) -> None:
        aside = path.with_name(f".{path.name}.{new_id('aside')}")
        try:
            link_or_copy(self._path(key), aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        root = self._path(prefix)
        if root.is_dir():
            shutil.rmtree(root)
        else:
            root.unlink(missing_ok=True)

    def remove_abandoned(self, seconds: float = ABANDONED_SECONDS) -> int:
        """Removes what killed processes left unfinished: older than `seconds`, and nobody holds its lock any more."""
        removed = 0
        for path in self._unfinished.iterdir():
            try:
                # When it came here: a link's time of writing is that of the file it shares bytes with.
                age = time.time() - path.stat().st_ctime
                if age > seconds and _is_abandoned(path, age):
                    path.unlink()
                    removed += 1
            except FileNotFoundError:  # another process finished it, or removed it first
                continue
        return removed

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no storage key: it takes letters, digits, '.', '_', '-', joined by '/'")
        return self.folder / key

    def _aside(self) -> Path:
        return self._unfinished / new_id("object")

    def _reveal(self, aside: Path, target: Path) -> None:
        self._make_folder(target.parent)
        os.replace(aside, target)
        sync_folder(target.parent)

    def _make_folder(self, folder: Path) -> None:
        """Makes `folder` and its missing parents, each durable in the one above."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextmanager
def _linked_or_copied(source: Path, aside: Path) -> Iterator[BinaryIO]:
    """`aside` with the bytes of `source`, locked from its first byte on."""
    try:
        os.link(source, aside)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, one without links, or links that the kernel's protection refuses
        with open(source, "rb") as original, open(aside, "xb") as file:
            _lock(file)
            shutil.copyfileobj(original, file)
            file.flush()
            yield file
        return
    with open(aside, "rb") as file:
        _lock(file)
        yield file


def _lock(file: BinaryIO) -> None:
    """As long as the file is open, and its process lives, `_is_abandoned` is false of it."""
    with suppress(OSError):  # a file system without locks, or another link of the same bytes that is being stored
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_abandoned(path: Path, age: float) -> bool:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return age > UNLOCKABLE_SECONDS
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them; else a copy."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, one without links, or links that the kernel's protection refuses
        shutil.copyfile(source, target)


def open_storage(url: str) -> DirectoryStorage:
    """The storage behind `file:///absolute/folder`."""
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.scheme != "file" or parts.netloc or not path.is_absolute():
        raise InvalidRequest(
            f"DPO_STORAGE_URL is {url!r}; it must name a folder, as file:///absolute/folder.", param="storage_url"
        )
    return DirectoryStorage(path)
