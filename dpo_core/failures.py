"""From an exception to the Failure that a run's status shows.

Several ranks fail within milliseconds of each other: the one at fault, then its peers, whose collectives
break. `claim` keeps the first.
"""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path

from pydantic import ValidationError

from dpo_core.errors import RunError
from dpo_core.run_directory import DISK_FULL, OUT_OF_MEMORY, RANK_LOST, Failure, RunDirectory, Status, sync_folder
from dpo_core.takes_less import IN_GENERAL

FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL_EXIT = os.EX_IOERR
"""The exit code of a process that had no room even to say why it ends."""
NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "cuda out of memory", "out of memory", "alloc_failed")
"""torch's CPU allocator, CUDA's runtime (cudaErrorMemoryAllocation) and its libraries raise bare RuntimeErrors."""
NO_ROOM = ("no space left on device", "disk quota exceeded")
"""safetensors and torch.save raise errors of their own for what the system refuses."""


def classify(error: BaseException) -> Failure:
    """The Failure of an exception: RunError brings its own; memory and disk are `resource`; others `infrastructure`."""
    if isinstance(error, RunError):
        return error.failure
    if isinstance(error, ValidationError):
        return Failure(kind="user", code="invalid_spec", message=f"spec.json can't be read: {error}")
    text = last_line(error)
    # torch's CUDA error is a class of its own; its CPU allocator raises a bare RuntimeError
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError) or _says(text, NO_MEMORY):
        return Failure(kind="resource", code=OUT_OF_MEMORY, message=f"Out of memory: {text} {IN_GENERAL}")
    if (isinstance(error, OSError) and error.errno in FULL) or _says(text, NO_ROOM):
        return Failure(kind="resource", code=DISK_FULL, message=f"The disk is full: {text}")
    if "closed by peer" in text or "reset by peer" in text:
        message = "The connection to another training process broke: it was killed or failed. The log has more."
        return Failure(kind="infrastructure", code=RANK_LOST, message=message)
    return Failure(kind="infrastructure", code="trainer_error", message=text)


def _says(text: str, any_of: tuple[str, ...]) -> bool:
    return any(words in text.lower() for words in any_of)


def last_line(error: BaseException) -> str:
    """`Type: message`, without the traceback, cut to a length that fits a status line."""
    line = traceback.format_exception_only(error)[-1].strip().splitlines()
    return (line[0] if line else type(error).__name__)[:1000]


def failure_file(directory: RunDirectory) -> Path:
    return directory.path / "failure.json"


def claim(directory: RunDirectory, failure: Failure) -> Failure:
    """Records `failure` unless another process already recorded one; returns the one that stands.

    `os.link` fails where the name exists, so exactly one process wins and nobody reads half a record.
    """
    aside = directory.path / f".failure.{os.getpid()}"
    with open(aside, "w", encoding="utf-8") as file:
        file.write(failure.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(aside, failure_file(directory))
        sync_folder(directory.path)
    except FileExistsError:
        failure = Failure.model_validate_json(failure_file(directory).read_bytes())
    finally:
        aside.unlink()
    return failure


def drop_echo(directory: RunDirectory) -> None:
    """Forgets a recorded failure that only says that another rank is gone. The ranks have ended."""
    record = failure_file(directory)
    if record.exists() and Failure.model_validate_json(record.read_bytes()).code == RANK_LOST:
        record.unlink()


def write_failed(directory: RunDirectory, failure: Failure) -> None:
    """Status `failed` with the first failure of any rank, keeping the step that was reached; what succeeded stays."""
    status = directory.status() or Status(state="starting")
    if status.state == "succeeded":  # a process group, say, did not end well afterwards
        return
    standing = claim(directory, failure)
    directory.write_status(status.model_copy(update={"state": "failed", "failure": standing}))


def end_with(directory: RunDirectory, error: Exception) -> int:
    """Writes why the run failed; returns the exit code for the process that met `error`.

    Where there is no room for that, the exit code alone says so.
    """
    try:
        write_failed(directory, classify(error))
    except OSError as refused:
        if refused.errno not in FULL:
            raise
        return DISK_FULL_EXIT
    return 1
