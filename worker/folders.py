"""Run directories on disk, `runs/{job}/{fence}/`, and who owns one.

A worker holds a file lock on each of its run directories. The kernel drops the locks of a worker that died,
so every other worker of the host knows which directories are left over, sweeps their processes and removes them.
In the locked file stands from where the processes of that run can be seen: containers and hosts may share a folder.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path

from dpo_core.run_directory import RunDirectory

logger = logging.getLogger(__name__)

LOCK = ".owner"
CHANGING_SECONDS, LOOK_SECONDS = 5.0, 0.02
"""How long one change of another worker's is waited for, which takes milliseconds, and how often it is looked for."""
MOST_CHANGES = 3
"""For how many that take so long."""


class RunFolders:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: dict[Path, tuple[RunDirectory, int]] = {}
        """Who holds it here, and by which descriptor."""
        self._stands_still: int | None = None
        """When the lock of all folders was written to last, while it was waited for in vain."""
        root.mkdir(parents=True, exist_ok=True)

    def make(self, job_id: str, fence: int) -> RunDirectory:
        """A new run directory, locked by this process. One that can't be locked is a leftover."""
        folder = self.root / job_id / str(fence)
        with self._changing():
            folder.mkdir(parents=True)
            run = self._hold(folder)
        with suppress(OSError):  # a full disk is told of by what has to be written
            (folder / LOCK).write_bytes(_processes_seen(folder))
        return run

    def leftovers(self) -> Iterator[RunDirectory]:
        """Directories whose worker is gone or has left them; each is locked by this process from then on."""
        found = glob("*/[0-9]*", root_dir=self.root)  # noqa: PTH207 - Path.glob fails where one goes meanwhile
        for folder in sorted(self.root / name for name in found):
            if folder in self._held or not folder.name.isdecimal():
                continue
            try:
                with self._changing():
                    run = self._hold(folder)
            except (BlockingIOError, FileNotFoundError, NotADirectoryError):
                continue  # another worker's, or just removed
            except OSError as error:
                logger.error("%s can't be looked at: %s", folder, error)
                continue
            yield run

    def sees_processes_of(self, run: RunDirectory) -> bool:
        """Whether this process would see every process of the run that lives: they are of this kernel since it was
        started, of these processes, and marked with this path. What another sweep doesn't find may run on."""
        try:
            return (run.path / LOCK).read_bytes() == _processes_seen(run.path)
        except OSError:
            return False

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
                (run.path / LOCK).unlink()  # while it is held: whoever opened it sees that it is gone
                self.leave(run)  # on NFS a file that is open is removed for good when it is closed
                run.path.rmdir()
                with suppress(OSError):
                    run.path.parent.rmdir()  # others of the job may be in it
        finally:
            self.leave(run)

    def leave(self, run: RunDirectory) -> None:
        """Gives a directory up: it is a leftover then. Harmless where it was given up already, and is held anew."""
        holder, descriptor = self._held.get(run.path, (None, 0))
        if holder is run:
            del self._held[run.path]
            os.close(descriptor)

    def _hold(self, folder: Path) -> RunDirectory:
        run, file = RunDirectory(folder), folder / LOCK
        descriptor = _locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            if not os.path.samestat(os.fstat(descriptor), file.stat()):  # it was removed before it was locked
                raise FileNotFoundError(errno.ENOENT, "Another worker removed it", str(file))
        except OSError:
            os.close(descriptor)
            raise
        self._held[folder] = run, descriptor
        return run

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Between the making of a folder and its locking no other worker may take it for a leftover.

        One that was frozen in the middle of a change keeps the others waiting once, for CHANGING_SECONDS. Then they go
        on without the lock, which they have not among themselves either, and the folder's own lock decides: one that is
        taken for a leftover there is a piece of work that could not be begun, and is given back.
        """
        descriptor = self._patiently()
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _patiently(self) -> int | None:
        """The lock of all folders, or None: whoever has it stands still, or did so before, or one follows another.

        Looks are counted, no seconds: frozen together with the others, this worker doesn't take them for frozen.
        """
        lock, since, looks = self.root / ".lock", None, 0
        enough = round(CHANGING_SECONDS / LOOK_SECONDS)
        for _ in range(MOST_CHANGES * enough):
            with suppress(BlockingIOError):
                descriptor = _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._stands_still = None
                with suppress(OSError):
                    os.utime(descriptor)  # whoever waits sees that it changes hands
                return descriptor
            written = lock.stat().st_mtime_ns
            if written == self._stands_still:
                return None
            looks = looks + 1 if written == since else 0
            since = written
            if looks == enough:
                logger.warning("another worker of this host has held %s for long: it, or its disk, hangs", self.root)
                self._stands_still = since
                return None
            time.sleep(LOOK_SECONDS)
        return None


def _processes_seen(folder: Path) -> bytes:
    """Other ones after a boot of this host, on another host, in another container, and by another path."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"boot {boot} {Path('/proc/self/ns/pid').readlink()} {folder}\n".encode()


def _locked(file: Path, how: int) -> int:
    """A descriptor that holds the file's lock; closing it, or dying, gives the lock up."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        descriptor = os.open(file, os.O_RDONLY)  # what is there is locked, and swept, while no writes are taken
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
