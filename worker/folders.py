"""Run directories on disk, `runs/{job}/{fence}/`, and who owns one.

A worker holds a file lock on each of its run directories. The kernel drops the locks of a worker that died,
so the next worker knows which directories are left over, sweeps their processes and removes them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path

from dpo_core.run_directory import RunDirectory

logger = logging.getLogger(__name__)

LOCK = ".owner"


class RunFolders:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._locks: dict[Path, int] = {}
        root.mkdir(parents=True, exist_ok=True)

    def make(self, job_id: str, fence: int) -> RunDirectory:
        """A new run directory, locked by this process."""
        folder = self.root / job_id / str(fence)
        with self._changing():
            folder.mkdir(parents=True)
            try:
                self._locks[folder] = _lock(folder)
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)
                _drop_if_empty(folder.parent)
                raise
        return RunDirectory(folder)

    def leftovers(self) -> Iterator[RunDirectory]:
        """Directories whose worker is gone; each is locked by this process from then on."""
        found = glob("*/[0-9]*", root_dir=self.root)  # noqa: PTH207 - Path.glob fails where one goes meanwhile
        for folder in sorted(self.root / name for name in found):
            if folder in self._locks or not folder.name.isdecimal():
                continue
            with self._changing():
                try:
                    self._locks[folder] = _lock(folder)
                except (BlockingIOError, FileNotFoundError, NotADirectoryError):
                    continue  # another worker's, or just removed
                except OSError as error:
                    logger.error("%s can't be looked at, perhaps left by a worker that died: %s", folder, error)
                    continue
            yield RunDirectory(folder)

    def remove(self, run: RunDirectory) -> None:
        """Removes a directory that this process holds, and the job's own folder with the last of them.

        After an error it can be called again.
        """
        # What may take long goes before the lock is taken: with it no worker of this host could make a folder.
        for path in run.path.iterdir() if run.path.exists() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        with self._changing():
            if run.path.exists():
                shutil.rmtree(run.path)
            if (descriptor := self._locks.pop(run.path, None)) is not None:
                os.close(descriptor)
            _drop_if_empty(run.path.parent)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Between the making of a folder and its locking no other worker may take it for a leftover."""
        with open(self.root / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _lock(folder: Path) -> int:
    """A descriptor that holds the folder's lock; closing it, or dying, gives the lock up."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _drop_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
