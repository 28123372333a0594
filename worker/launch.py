"""Starting the process of an attempt: which program, in which environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpo_core.process import PARENT_PID
from dpo_core.run_directory import RunDirectory
from dpo_core.spec import Device
from worker.sweep import MARK

Kind = Literal["validate", "train", "check", "merge"]

GOES_FIRST = 500
"""Whom Linux kills when memory is used up (proc(5), oom_score_adj): an attempt and what it starts, by so much sooner
than the worker, which can say what happened and go on."""

INHERITED = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SHELL", "VIRTUAL_ENV"}
    | {"LD_LIBRARY_PATH", "LD_PRELOAD", "CPATH", "LIBRARY_PATH", "CC", "CXX", "MAX_JOBS", "XDG_CACHE_HOME"}
    | {"GOMP_SPINCOUNT"}
)
INHERITED_PREFIXES = (
    "LC_",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "GLOO_",
    "TORCH_",
    "PYTORCH_",
    "TRITON_",
    "OMP_",
    "MKL_",
    "DS_",
)


@dataclass(frozen=True)
class Programs:
    """The command of each kind of work; the run directory is appended."""

    validate: tuple[str, ...] = (sys.executable, "-m", "dpo_core.prepare")
    train: tuple[str, ...] = (sys.executable, "-m", "dpo_core.launch")
    check: tuple[str, ...] = (sys.executable, "-m", "dpo_core.check")
    merge: tuple[str, ...] = (sys.executable, "-m", "dpo_core.merge")

    def command(self, kind: Kind, run: RunDirectory) -> list[str]:
        programs = {"validate": self.validate, "train": self.train, "check": self.check, "merge": self.merge}
        return [*programs[kind], str(run.path)]


def trainer_environment(
    inherited: Mapping[str, str], run: RunDirectory, device: Device, slot_ids: list[str]
) -> dict[str, str]:
    """What a trainer may know of our environment: a list of harmless names, so that no secret slips through."""
    environment = {
        name: value for name, value in inherited.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }
    environment[MARK] = str(run.path)
    environment[PARENT_PID] = str(os.getpid())
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot_ids) if device == "cuda" else ""
    environment["PYTHONUNBUFFERED"] = "1"
    # The run directory is the working directory, and nothing is imported from there.
    environment["PYTHONSAFEPATH"] = "1"
    return environment


def launch(command: list[str], environment: dict[str, str], run: RunDirectory) -> subprocess.Popen[bytes]:
    """Starts `command` in the run directory, its output in log.txt.

    Call it from a thread that outlives the run: the child's death signal is tied to the thread that forked.
    """
    with open(run.log_file, "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=run.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C on the worker's terminal is the worker's to handle
        )
    with suppress(OSError):
        inherited = Path(f"/proc/{process.pid}/oom_score_adj")
        inherited.write_text(str(min(1000, int(inherited.read_text()) + GOES_FIRST)))
    return process
