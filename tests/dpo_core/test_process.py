from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dpo_core.process import PARENT_PID, arm_parent_death, start_deadman
from dpo_core.run_directory import RunDirectory

WAITS = "import sys, time; from pathlib import Path; from dpo_core.process import *; "


def wait_for(file: Path) -> str:
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return file.read_text()


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """A parent starts a child that arms itself; the parent is killed, and the child goes too."""
    ready = tmp_path / "ready"
    child = WAITS + f"arm_parent_death(); Path({str(ready)!r}).write_text(str(os.getpid())); time.sleep(300)"
    parent = (
        "import os, subprocess, sys; "
        f"os.environ[{PARENT_PID!r}] = str(os.getpid()); subprocess.run([sys.executable, '-c', {child!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    orphan = psutil.Process(int(wait_for(ready)))
    process.kill()
    process.wait(60)
    gone, alive = psutil.wait_procs([orphan], timeout=60)
    assert (len(gone), alive) == (1, [])


def test_a_child_whose_parent_is_gone_already_dies_at_once() -> None:
    environment = os.environ | {PARENT_PID: "1"}
    process = subprocess.run(
        [sys.executable, "-c", WAITS + "arm_parent_death(); time.sleep(300)"], env=environment, check=False, timeout=60
    )
    assert process.returncode == -signal.SIGKILL


def test_nothing_is_armed_without_a_supervisor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(PARENT_PID, raising=False)
    arm_parent_death()
    assert start_deadman(tmp_path) is None


def test_the_deadman_strikes_when_the_lease_runs_out(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.renew_lease(600)
    program = (
        WAITS + "start_deadman(Path(sys.argv[1]), 0.05); Path(sys.argv[1], 'ready').write_text('1'); time.sleep(300)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    wait_for(tmp_path / "ready")
    # a lease file that vanishes is not a renewal and not an end: the last deadline stands
    directory.lease_file.unlink()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    # nor is one that can't be read: the watch goes on
    directory.lease_file.mkdir()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    directory.lease_file.rmdir()
    directory.renew_lease(-1)
    assert process.wait(60) == -signal.SIGKILL
