"""What a program of a run directory does around its work, where it has no ranks: `prepare`, `check` and `merge`.

It dies with its parent and with its lease, writes `status.json` (running, then succeeded, failed, or stopped
on SIGTERM), and says in it what went wrong.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dpo_core.errors import RunError
from dpo_core.failures import end_with
from dpo_core.process import arm_parent_death, start_deadman
from dpo_core.run_directory import RunDirectory, Status

Task = Callable[[RunDirectory], Status]
"""Does the work in a run directory; the status that it returns is written last."""


class Stopped(BaseException):
    """SIGTERM arrived. Not an Exception, so that nothing on the way takes it for a failure."""


def run(path: Path, task: Task) -> int:
    """Does `task` in the run directory `path`; the exit code is 0 unless it failed."""
    directory = RunDirectory(path)
    try:
        directory.write_status(Status(state="running"))
        directory.write_status(task(directory))
    except Stopped:
        status = directory.status()
        if status is None or status.state != "succeeded":
            directory.write_status(Status(state="stopped"))
        return 0
    except Exception as error:  # noqa: BLE001 (whatever it was, the status must say so)
        if not isinstance(error, RunError):
            traceback.print_exc()
        return end_with(directory, error)
    return 0


def main(name: str, task: Task, arguments: list[str]) -> int:
    """`python -m dpo_core.NAME RUN_DIR`."""
    if len(arguments) != 1:
        sys.stderr.write(f"usage: python -m dpo_core.{name} RUN_DIR\n")
        return 2
    path = Path(arguments[0])
    arm_parent_death()
    signal.signal(signal.SIGTERM, _stop)
    RunDirectory(path).record_process(name)
    start_deadman(path)
    return run(path, task)


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Stopped
