"""How an attempt ended: from exit code, status.json and the log's last lines."""

from __future__ import annotations

import signal
import subprocess
from typing import Literal

from control_plane.errors import StorageFull
from dpo_core.errors import RunError
from dpo_core.failures import DISK_FULL_EXIT, FULL
from dpo_core.run_directory import DISK_FULL, HOST_OUT_OF_MEMORY, RANK_LOST, Failure, RunDirectory, Status
from worker.launch import Kind
from worker.room import NoRoom
from worker.run_log import last_lines

Ending = Failure | Literal["succeeded", "stopped"]

NO_ROOM_TO_SPEAK = Failure(kind="resource", code=DISK_FULL, message="The worker's disk is full (while training).")
OUT_OF_HOST_MEMORY = Failure(
    kind="resource",
    code=HOST_OUT_OF_MEMORY,
    message="The kernel killed a training process, as the memory of the worker's host or container was used up.",
)


def failure_of(error: BaseException, doing: str, kind: Kind) -> Failure:
    """The Failure for an error on the worker's own side, while it was `doing` something for work of that kind."""
    if isinstance(error, NoRoom | RunError):
        return error.failure
    if isinstance(error, StorageFull) or (isinstance(error, OSError) and error.errno in FULL):
        where = "The storage is" if isinstance(error, StorageFull) else "The worker's disk is"
        then = " Free space there, then ask again." if kind in ("check", "merge") else ""
        return Failure(kind="resource", code=DISK_FULL, message=f"{where} full (while {doing}).{then}")
    return Failure(kind="infrastructure", code="worker_error", message=f"{type(error).__name__} while {doing}: {error}")


def how_it_ended(
    run: RunDirectory, process: subprocess.Popen[bytes] | None, *, stopping: bool, oom_killed: bool = False
) -> Ending:
    """What the trainer says. `process` has ended, or None if it was never started.

    That it succeeded is its last word, when all that it made is durable, however it ends then; that it stopped, if its
    exit code agrees.

    A process that was asked to stop may end by the signal itself, or be killed when its time is up. `oom_killed`: the
    kernel has killed a process for want of memory meanwhile, and we killed none.
    """
    status = run.status()
    if status is not None and status.state == "succeeded":
        return "succeeded"
    if oom_killed and _died_without_a_word(status, process):
        return _with_log(OUT_OF_HOST_MEMORY, run)
    if status is not None and status.failure is not None and not (stopping and status.failure.kind == "infrastructure"):
        return _with_log(status.failure, run)
    says_stopped = status is not None and status.state == "stopped" and process is not None and process.returncode == 0
    if says_stopped or stopping or process is None:
        return "stopped"
    if process.returncode == DISK_FULL_EXIT:
        return _with_log(NO_ROOM_TO_SPEAK, run)
    message = f"The training processes ended without saying why ({_in_words(process.returncode)})."
    return _with_log(Failure(kind="infrastructure", code="trainer_died", message=message), run)


def _died_without_a_word(status: Status | None, process: subprocess.Popen[bytes] | None) -> bool:
    """Whether a process of the run, or all of it, was killed before it could say why."""
    if status is not None and status.failure is not None:
        return status.failure.code == RANK_LOST
    return process is not None and process.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


def _in_words(exit_code: int) -> str:
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _with_log(failure: Failure, run: RunDirectory) -> Failure:
    """A failure that isn't the user's to mend carries the last lines of the log for whoever mends it."""
    if failure.kind == "user":
        return failure
    return failure.model_copy(update={"log": last_lines(run.log_file)})
