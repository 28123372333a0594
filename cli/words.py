"""How commands name each other in what they print, and how they write a time."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from datetime import datetime


def command(*arguments: str) -> str:
    """A `dpo` command that can be pasted into this shell, which may know `dpo` only by its path."""
    return shlex.join(["dpo" if shutil.which("dpo") else sys.argv[0], *arguments])


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `5 h 12 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(at: datetime | float | None) -> str:
    """A time (or Unix second) by this machine's clock, without a space: `2026-11-27T15:04:05+0000`; `-` for None."""
    if at is None:
        return "-"
    seconds = at.timestamp() if isinstance(at, datetime) else at
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
