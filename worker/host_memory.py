"""Whether the kernel killed processes here for want of memory: by its own count, as a SIGKILL names no sender."""

from __future__ import annotations

from pathlib import Path

VMSTAT = Path("/proc/vmstat")
CGROUPS = Path("/sys/fs/cgroup")


def oom_kills() -> int:
    """How many processes of this worker's cgroup (a container's, as a rule) the kernel has killed so; where there is no
    such count, of the whole host. It only rises, so what counts is a difference. 0 where nothing is counted."""
    for path in (*_of_cgroup(Path("/proc/self/cgroup"), CGROUPS), VMSTAT):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def _of_cgroup(membership: Path, root: Path) -> list[Path]:
    """Files that may count the kills of this process's memory cgroup, version 2 or 1 (proc(5), cgroups(7))."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += [base / path.lstrip("/") / "memory.events" for base in (root, root / "unified")]
        elif "memory" in controllers.split(","):
            # In a container the path may be the host's, while the container's own group is what is mounted.
            found += [root / "memory" / path.lstrip("/") / "memory.oom_control", root / "memory" / "memory.oom_control"]
    return found
