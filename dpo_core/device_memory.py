"""How much memory a rank may use on this machine; asks the driver and the kernel, and imports no torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil

from dpo_core.spec import Device

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""The container's own limit (cgroup v2): a number of bytes, or `max`."""


def memory_of_a_rank(device: Device, ranks: int) -> int | None:
    """Bytes of the smallest GPU, or a rank's share of the host's memory; None where neither is known.

    What is *free* at the moment is not asked: who uses it now may be gone when training begins.
    """
    return gpu_memory() if device == "cuda" else host_memory() // ranks


def gpu_memory() -> int | None:
    """Bytes of the smallest GPU; None where the driver can't be asked."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return min(int(mebibytes) for mebibytes in answer.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def host_memory(limit: Path = CGROUP_LIMIT) -> int:
    """Bytes that this machine, or the container that we run in, has."""
    total: int = psutil.virtual_memory().total
    try:
        return min(total, int(limit.read_text()))
    except (OSError, ValueError):
        return total
