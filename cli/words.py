"""How commands name each other in what they print."""

from __future__ import annotations

import shlex
import shutil
import sys


def command(*arguments: str) -> str:
    """A `dpo` command that can be pasted into this shell, which may know `dpo` only by its path."""
    return shlex.join(["dpo" if shutil.which("dpo") else sys.argv[0], *arguments])
