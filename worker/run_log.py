"""The log of an attempt: bounded on this host while its processes write it, copied to storage for the job's owner."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import ProgrammingError

from control_plane import jobs, removals
from control_plane.database import DATABASE_AWAY, Database
from control_plane.errors import StorageFull
from control_plane.storage import Storage, log_key
from dpo_core.run_directory import RunDirectory

logger = logging.getLogger(__name__)

HEAD_BYTES = 1024**2
TAIL_BYTES = 3 * 1024**2
"""A long log keeps its beginning, where versions and settings stand, and its end."""
MOST_BYTES = 2 * (HEAD_BYTES + TAIL_BYTES)
"""A log may grow to this before its middle is left out, so that it is seldom done."""
KEEP_SECONDS = 30.0
"""Between two copies of a log that grows."""
LAST_LINES = 15
LAST_BYTES = 3000


class RunLog:
    """That of one attempt; `job_id` and `fence` say where its copy lies."""

    def __init__(self, storage: Storage, job_id: str, fence: int, run: RunDirectory) -> None:
        self._storage = storage
        self._job_id = job_id
        self._key = log_key(job_id, fence)
        self._file = run.log_file
        self._left_out = 0
        self._kept_size = 0
        self._next_copy = time.monotonic() + KEEP_SECONDS

    def bound(self) -> None:
        """Leaves out the middle of a log that grew too long. Its writers append, and go on behind the new end."""
        if _size(self._file) > MOST_BYTES:
            self._left_out += leave_out_middle(self._file, HEAD_BYTES, TAIL_BYTES, before=self._left_out)

    @property
    def to_keep(self) -> bool:
        """Whether it is time for another copy."""
        return time.monotonic() >= self._next_copy and _size(self._file) != self._kept_size

    def keep(self) -> None:
        """Copies the log to storage. One that can't be kept is said and forgotten: the job is worth more."""
        self._next_copy = time.monotonic() + KEEP_SECONDS
        try:
            with open(self._file, "rb") as source, self._storage.writer(self._key) as sink:
                shutil.copyfileobj(source, sink)
                self._kept_size = source.tell()
        except FileNotFoundError:
            return
        except (OSError, StorageFull) as error:
            logger.warning("%s could not be stored: %s", self._key, error)

    def keep_last(self, database: Database) -> None:
        """The last copy. It is to go again where the job, or a file of it, was deleted meanwhile.

        Whoever deletes later removes it, and while PostgreSQL is away or not yet migrated nobody does.
        """
        try:
            self.bound()
        except OSError as error:  # too long is better than none
            logger.warning("%s could not be made shorter: %s", self._file, error)
        self.keep()
        with suppress(*DATABASE_AWAY, ProgrammingError), database.transaction() as session:
            if not jobs.keeps_logs(session, self._job_id):
                removals.note(session, self._key)


def leave_out_middle(path: Path, head: int, tail: int, *, before: int = 0) -> int:
    """Keeps the first `head` and the last `tail` bytes, less a torn line; returns how many bytes went.

    The line between the two counts `before` as well: what earlier calls left out. What is written in this very moment
    may be lost.
    """
    with open(path, "r+b") as file:
        size = file.seek(0, 2)
        file.seek(size - tail)
        end = file.read()
        end = end[end.find(b"\n") + 1 :]
        file.truncate(head)
    gone = size - head - len(end)
    with open(path, "ab") as file:
        file.write(f"\n--- {before + gone} bytes of this log were left out here ---\n".encode() + end)
    return gone


def last_lines(path: Path) -> str | None:
    """The end of a log, for a failure's message."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LAST_BYTES))
            text = file.read().decode("utf-8", errors="replace").replace("\0", "")
    except FileNotFoundError:
        return None
    return "\n".join(text.splitlines()[-LAST_LINES:]) or None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
