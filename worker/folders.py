"""Run directories on disk, `runs/{job}/{fence}/`, and who owns one.

A worker holds a file lock on each of its run directories. The kernel drops the locks of a worker that died,
so every other worker of the host knows which directories are left over, sweeps their processes and removes them.
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
        """A new run directory, locked by this process. One that can't be locked is a leftover."""
        folder = self.root / job_id / str(fence)
        with self._changing():
            folder.mkdir(parents=True)
            self._locks[folder] = _lock(folder)
        return RunDirectory(folder)

    def leftovers(self) -> Iterator[RunDirectory]:
        """Directories whose worker is gone or has left them; each is locked by this process from then on."""
        found = glob("*/[0-9]*", root_dir=self.root)  # noqa: PTH207 - Path.glob fails where one goes meanwhile
        for folder in sorted(self.root / name for name in found):
            if folder in self._locks or not folder.name.isdecimal():
                continue
            try:
                with self._changing():
                    self._locks[folder] = _lock(folder)
            except (BlockingIOError, FileNotFoundError, NotADirectoryError):
                continue  # another worker's, or just removed
            except OSError as error:
                logger.error("%s can't be looked at: %s", folder, error)
                continue
            yield RunDirectory(folder)

    def remove(self, run: RunDirectory) -> None:
        """Removes a directory that this process holds, and the job's own folder with the last of them.

        OSError where that can't be done; it is a leftover then.
        """
        try:
            # What may take long goes before the lock is taken: with it no worker of this host could make a folder.
            for path in run.path.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
            with self._changing():
                self.leave(run)  # first: on NFS a file that is open can't be removed for good
                shutil.rmtree(run.path)
                with suppress(OSError):
                    run.path.parent.rmdir()  # others of the job may be in it
        finally:
            self.leave(run)

    def leave(self, run: RunDirectory) -> None:
        """Gives up a directory that this process holds: it is a leftover then."""
        if (descriptor := self._locks.pop(run.path, None)) is not None:
            os.close(descriptor)

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
