"""`python -m dpo_core.launch RUN_DIR`: all ranks of one run on this host, under torchrun.

Exit code 0 means succeeded or stopped; otherwise `status.json` says `failed` and why, unless the launcher
itself was killed. SIGTERM is passed to the ranks, which get SHUTDOWN_SECONDS for their checkpoint.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
from contextlib import suppress
from pathlib import Path

from dpo_core.process import PARENT_PID, arm_parent_death
from dpo_core.run_directory import RANK_LOST, Failure, RunDirectory
from dpo_core.spec import RunSpec

SHUTDOWN_SECONDS = 24 * 3600
"""No bound of its own: the worker kills a run whose time to stop is up (DPO_STOP_SECONDS)."""


def main(path: Path) -> int:
    """Runs until every rank has ended; returns the exit code."""
    arm_parent_death()
    directory = RunDirectory(path)
    run = directory.spec()
    os.environ.update(rank_environment(run))
    if run.ranks == 1:
        # torchrun would only add its own start-up time. The death signal outlives exec.
        os.execv(sys.executable, [sys.executable, "-m", "dpo_core", str(path)])  # noqa: S606 (no shell is the point)
    os.environ[PARENT_PID] = str(os.getpid())
    code, killed = run_ranks(path, run.ranks)
    status = directory.status()
    if code == 0 or (status is not None and status.state in ("succeeded", "stopped")):
        return 0
    from dpo_core.failures import DISK_FULL_EXIT, drop_echo, write_failed

    if code == DISK_FULL_EXIT:
        return code

    # A rank that was killed leaves no word of its own; its peers' word is that their connection to it broke.
    if killed is not None:
        drop_echo(directory)
    message = killed or "A training process ended without a word. The log has what it printed."
    write_failed(directory, Failure(kind="infrastructure", code=RANK_LOST, message=message))
    return code


def rank_environment(run: RunSpec) -> dict[str, str]:
    """What the ranks inherit. Values that the operator has set win, except for our own."""
    cores = len(os.sched_getaffinity(0))
    wishes = {
        "OMP_NUM_THREADS": str(max(1, cores // run.ranks)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # models come from folders: nothing may reach out
        # All ranks are on this host: nothing listens where another host could connect.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait for each other by spinning take eight times the CPU on a host that is busy. A few
        # microseconds of it did not show there, and spare many a wait the way through the kernel (docs/log.md).
        # Only together: the count would bound an operator's ACTIVE, too.
        wishes |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "300"}
    if run.device == "cpu" and _has_glibc(2, 35):  # older ones refuse such a threshold, and then never raise theirs
        # What a step frees the next one takes again: given back to the kernel, its pages would be zeroed each time.
        wishes |= dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**32))
    return {name: os.environ.get(name, value) for name, value in wishes.items()} | {"DS_ACCELERATOR": run.device}


def _has_glibc(*oldest: int) -> bool:
    name, version = platform.libc_ver()
    return name == "glibc" and tuple(map(int, version.split("."))) >= oldest


def run_ranks(path: Path, ranks: int) -> tuple[int, str | None]:
    """Runs torchrun in this process, so that the ranks' parent is the one that they are told.

    Returns the exit code, which is DISK_FULL_EXIT where a rank ended so, and, where a signal killed a rank, a sentence
    that names both.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from dpo_core import rendezvous
    from dpo_core.failures import DISK_FULL_EXIT

    rendezvous.register()
    arguments = [f"--rdzv-backend={rendezvous.BACKEND}", f"--rdzv-endpoint={rendezvous.LOOPBACK}"]
    arguments += [f"--nproc-per-node={ranks}", "--max-restarts=0"]
    # Else torchrun leaves empty folders in TMPDIR, for every run. Two threads a rank look there ten times a second.
    arguments += [f"--log-dir={os.devnull}"]
    arguments += [f"--shutdown-timeout={SHUTDOWN_SECONDS}", "--module", "dpo_core", str(path)]
    try:
        torchrun.main(arguments)
    except ChildFailedError as error:
        with suppress(OSError):  # the log's disk may be full
            sys.stderr.write(f"{error}\n")
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        return DISK_FULL_EXIT if DISK_FULL_EXIT in codes.values() else 1, killed_rank(codes)
    except SignalException as error:
        return 128 + int(error.sigval), None
    return 0, None


def killed_rank(exit_codes: dict[int, int]) -> str | None:
    """A sentence about the first rank that a signal ended, or None. torchrun ends the others by SIGTERM."""
    killed = [(code == -signal.SIGTERM, rank, code) for rank, code in exit_codes.items() if code < 0]
    if not killed:
        return None
    _, rank, code = min(killed)
    return f"Rank {rank} was killed ({signal.Signals(-code).name})."


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m dpo_core.launch RUN_DIR")
    sys.exit(main(Path(sys.argv[1])))
