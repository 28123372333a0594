"""The one folder that holds everything of an embedded service, and who may run on it.

lock          whoever runs the service holds it, and so do its parts: it is free once the last has gone
service.json  there while the service answers: base_url, api_key_file, pid
api_key       the first API key, readable by its owner alone, for the owner's own shell and scripts
postgres/  redis/  sockets/  storage/  runs/  logs/
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from cli.errors import CommandFailed
from control_plane.settings import EmbeddedSettings
from dpo_core.run_directory import write_whole

LEFTOVER_SECONDS = 30.0


def default_data() -> Path:
    """DPO_DATA, or one place per user, not the current folder: started from anywhere, a service finds its jobs again.

    For root a system folder, because PostgreSQL then runs as another user, who must pass through the
    folders above; root's home stays closed.
    """
    given = EmbeddedSettings().data
    if given is not None:
        return given
    return Path("/var/lib/dpo-service") if os.geteuid() == 0 else Path.home() / ".local/share/dpo-service"


@dataclass(frozen=True)
class Announcement:
    """`service.json`."""

    base_url: str
    api_key_file: str
    pid: int


class DataFolder:
    """Paths and records under one data folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.logs = self.path / "logs"
        self.storage = self.path / "storage"
        self.runs = self.path / "runs"
        self.lock_file = self.path / "lock"
        self.service_file = self.path / "service.json"
        self.api_key_file = self.path / "api_key"

    def make(self) -> None:
        """Raises CommandFailed where the folder can't be made or written."""
        try:
            for folder in (self.path, self.storage, self.runs, self.logs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CommandFailed(
                f"can't write to the data folder {self.path} ({error.strerror}); choose another one with --data"
            ) from None

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Holds the lock; yields its file descriptor, for the parts to inherit.

        Raises CommandFailed while another `dpo up` runs here. The parts of one that was killed have been
        told to end by the kernel: they are waited for.
        """
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + LEFTOVER_SECONDS
            while not _try_lock(descriptor):
                owner = self._owner(descriptor)
                if owner is not None:
                    raise CommandFailed(
                        f"`dpo up` already runs on {self.path} (pid {owner}); stop that one, or choose another --data"
                    )
                if time.monotonic() > deadline:
                    raise CommandFailed(f"parts of a former `dpo up` still run on {self.path}; {self._holders()}")
                time.sleep(0.1)
            me = psutil.Process()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": me.pid, "started": me.create_time()}).encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def announce(self, base_url: str) -> None:
        record = Announcement(base_url, str(self.api_key_file), os.getpid())
        write_whole(self.service_file, json.dumps(asdict(record)) + "\n")

    def announcement(self) -> Announcement | None:
        """Of the service that runs here; None where none does. Raises PermissionError in another user's folder."""
        try:
            record = Announcement(**json.loads(self.service_file.read_bytes()))
        except FileNotFoundError:
            return None
        return record if psutil.pid_exists(record.pid) else None  # a killed one could not withdraw it

    def withdraw(self) -> None:
        self.service_file.unlink(missing_ok=True)

    def keep_key(self, secret: str) -> None:
        aside = self.api_key_file.with_name(".api_key")
        aside.unlink(missing_ok=True)
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.api_key_file)

    def kept_key(self) -> str | None:
        try:
            return self.api_key_file.read_text().strip()
        except FileNotFoundError:
            return None

    @staticmethod
    def _owner(descriptor: int) -> int | None:
        """The pid of the `dpo up` that took the lock, or None when that process is gone."""
        try:
            record = json.loads(os.pread(descriptor, 1024, 0))
            same = abs(psutil.Process(record["pid"]).create_time() - record["started"]) < 0.05
            return int(record["pid"]) if same else None
        except (ValueError, psutil.NoSuchProcess):
            return None

    def _holders(self) -> str:
        found = []
        for process in psutil.process_iter():
            try:
                if any(Path(file.path) == self.lock_file for file in process.open_files()):
                    found.append(str(process.pid))
            except psutil.Error:
                continue
        return f"end them first (pid {', '.join(found)})" if found else "end them first"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
