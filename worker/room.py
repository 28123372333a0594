"""How much room a worker's disks have, and whether that is enough to begin with a job."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from pathlib import Path

from dpo_core.footprint import in_bytes
from dpo_core.run_directory import DISK_FULL, Failure

LEAST = 4 * 2**20
"""Bytes without which a worker takes no work at all: not even its run directory would be sure of a place."""
ANSWER_SECONDS = 1.0
"""How long a disk may take to say how much room it has: one over a network may hang for hours."""
MORE = 1.05
"""How much more than what was not enough counts as enough."""


class NoRoom(Exception):
    """A job would write more than there is room for. `failure` says so to its owner."""

    def __init__(self, needed: int, free: int) -> None:
        message = f"The job will write about {in_bytes(needed)}, and its worker's disk has {in_bytes(free)} of room."
        super().__init__(message)
        self.needed = needed
        self.failure = Failure(kind="resource", code=DISK_FULL, message=message)


class Room:
    """Of the disks that hold run directories and storage, which may be one."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._asked: Future[int] | None = None
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """Bytes that we may still write, on the fuller disk; none where one doesn't answer.

        One that hangs is waited for once, on a thread that keeps nobody from leaving. Until it answers, it has no room.
        """
        with self._lock:
            patience, answer = 0.0, self._asked
            if answer is None:
                patience, answer = ANSWER_SECONDS, Future()
                try:
                    threading.Thread(target=self._measure, args=(answer,), name="room", daemon=True).start()
                except RuntimeError:  # the host has no thread left; the next who asks begins anew
                    return 0
            try:
                return answer.result(patience)
            except OSError:  # TimeoutError is one, the disk's own as well as ours
                return 0
            finally:
                self._asked = None if answer.done() else answer

    def _measure(self, answer: Future[int]) -> None:
        try:
            answer.set_result(min(disk.f_bavail * disk.f_frsize for disk in map(os.statvfs, self._folders)))
        except OSError as error:
            answer.set_exception(error)

    @property
    def too_little(self) -> bool:
        return self.free < LEAST

    def require(self, needed: int) -> None:
        """Raises NoRoom."""
        if needed > (free := self.free):
            raise NoRoom(needed, free)


def more_than(free: int, run: Path, needed: int) -> int:
    """How much room there must be to try again after a run ended for want of it, when `free` bytes were left: `needed`,
    by the estimate, and in any case more than there is without this run, which was not enough."""
    own = sum(file.st_blocks * 512 for path in run.rglob("*") if (file := path.lstat()).st_nlink == 1)
    return max(needed, int(MORE * (free + own)) + LEAST)
