"""No orphan ever holds a GPU: finding and killing every process of a run.

torchrun starts each rank in a session of its own, so killing torchrun or its process group leaves the ranks
alive. A run's processes are found three ways: as descendants of the launched one, by the pid and start time
that ranks record in the run directory, and by a mark that all of them inherit in their environment.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from dpo_core.run_directory import RunDirectory

MARK = "DPO_RUN_DIRECTORY"
"""Environment variable of every process of a run: its run directory."""

UNKILLABLE_SECONDS = 60.0
"""A process that lives on for so long after kill -9 waits in the kernel, for a GPU or a file system that hangs."""


class Sweep:
    """Of one run. What it found once it looks at again: a process that dies loses its mark before its memory."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._found: set[psutil.Process] = set()

    def living(self, launched: int | None) -> list[psutil.Process]:
        """Every process of the run that still lives; dead ones that nobody waited for hold nothing and don't count."""
        self._found.update(self._run.recorded_processes(), _marked(self._run.path), _family(launched))
        return [process for process in self._found if alive(process)]

    def kill(self, launched: int | None) -> bool:
        """Kills what is left of the run; True when nothing was left. Call until then: a kill takes a moment."""
        left = self.living(launched)
        for process in left:
            try:
                process.kill()  # psutil compares the start time first: a reused pid is spared
            except psutil.NoSuchProcess:
                continue
        return not left


def alive(process: psutil.Process) -> bool:
    """Linux calls a process a zombie as soon as its first thread is dead; the others may still hold all its memory."""
    try:
        return process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.NoSuchProcess:
        return False
    except FileNotFoundError:  # psutil lets it through where another one takes the pid: the next look tells
        return True


def _family(launched: int | None) -> list[psutil.Process]:
    """The launched process, while it is our child that wasn't waited for, and all below it."""
    if launched is None:
        return []
    try:
        root = psutil.Process(launched)
    except psutil.NoSuchProcess:
        return []
    try:
        return [root, *root.children(recursive=True)]
    except (psutil.NoSuchProcess, FileNotFoundError):  # as in `alive`
        return [root]


def _marked(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(folder):
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
