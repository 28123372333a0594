"""No orphan keeps training: a process dies with its parent, and when its supervisor stops renewing the lease.

Both guards do nothing where nobody supervises (no DPO_PARENT_PID, no `lease` file). Linux only, as the
service is. Imports no torch.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

from dpo_core.run_directory import RunDirectory

PARENT_PID = "DPO_PARENT_PID"
"""Environment variable: the pid of the process that starts us, written by that process."""


def arm_parent_death(sig: signal.Signals = signal.SIGKILL) -> None:
    """`die_with` the process that DPO_PARENT_PID names, if any. Raises what that raises."""
    expected = os.environ.get(PARENT_PID)
    if expected is not None:
        die_with(int(expected), sig)


def die_with(parent: int, sig: signal.Signals = signal.SIGKILL) -> None:
    """Asks the kernel to send `sig` when the thread of `parent` that forked us ends (PR_SET_PDEATHSIG, prctl(2)).

    The parent may have died before the call: then nothing would ever be sent, so the signal is raised at once.

    Raises:
        OSError: the kernel refused.
    """
    set_parent_death_signal = 1
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(set_parent_death_signal, int(sig), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent:
        os.kill(os.getpid(), sig)


def dump_stacks_when_asked(run_directory: Path, name: str) -> None:
    """Upon SIGUSR1 this process writes the stacks of all its threads to `stacks/{name}.txt`.

    C code does that: also for a main thread that waits inside a library, where Python's own handlers never run.
    """
    folder = RunDirectory(run_directory).stacks
    folder.mkdir(parents=True, exist_ok=True)
    # Open as long as the process lives: what hangs can open nothing.
    descriptor = os.open(folder / f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    faulthandler.register(signal.SIGUSR1, file=descriptor, all_threads=True)


def limit_memory(more: int) -> None:
    """Lets this process have `more` bytes than it has now; what it asks for beyond that is refused (MemoryError).

    Of memory that is its own (RLIMIT_DATA): files that it maps to read don't count.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = int(status["VmData"].split()[0]) * 1024 + more
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def start_deadman(run_directory: Path, interval: float = 1.0) -> threading.Thread | None:
    """Starts a thread that kills this process (SIGKILL) once the lease in `run_directory` has run out.

    Returns None, and starts nothing, where there is no lease. `interval` is in seconds.
    """
    directory = RunDirectory(run_directory)
    deadline = directory.lease_deadline()
    if deadline is None:
        return None

    def watch(deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(interval, left))
            # A lease that vanished or can't be read is one that nobody renews: the last deadline stands.
            with suppress(OSError, ValueError):
                deadline = directory.lease_deadline() or deadline
        os.kill(os.getpid(), signal.SIGKILL)

    thread = threading.Thread(target=watch, args=(deadline,), name="deadman", daemon=True)
    thread.start()
    return thread
