"""A trainer that the kernel kills for want of memory, in a cgroup with a limit; skipped where there can be none."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from control_plane.job_states import FINAL
from tests.stub_trainer import chain
from tests.worker.stubs import World, eventually, worker_process
from tests.worker.test_hangs import event
from worker.host_memory import _of_cgroup

LIMIT = 700 * 2**20


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory cgroup of LIMIT bytes."""
    counted = [path for path in _of_cgroup(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")) if path.exists()]
    if not counted:
        pytest.skip("this process is in no memory cgroup that counts kills")
    group = counted[0].parent / f"dpo-test-{uuid4().hex[:8]}"
    try:
        group.mkdir()
        limit = next(group / name for name in ("memory.max", "memory.limit_in_bytes") if (group / name).exists())
        limit.write_text(str(LIMIT))
    except (OSError, StopIteration):
        group.exists() and group.rmdir()
        pytest.skip("no memory cgroup with a limit can be made here")
    yield group
    eventually(lambda: _ended(group), "nothing is left in the group")
    group.rmdir()


def _ended(group: Path) -> bool:
    """Kills what is in it: ranks outlive, for a moment, a worker that the kernel took."""
    left = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not left


def test_a_rank_that_the_kernel_killed_is_told_from_one_that_somebody_killed(world: World, small_group: Path) -> None:
    with worker_process(world.settings, "--exhaust-at=3", "--alone") as worker:
        (small_group / "cgroup.procs").write_text(str(worker.pid))
        job_id = world.job()
        eventually(lambda: worker.poll() is not None or world.state(job_id) in FINAL, "the job is over")
        if worker.poll() is not None:
            pytest.skip("the kernel took the worker, too: in so small a group it may, before the rank's memory is back")
        world.nothing_left()
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "failed"), ("train", "succeeded")]
    assert world.final_weights(job_id) == chain(6, job_id)
    told = event(world, job_id, "host_out_of_memory")
    assert "the memory of the worker's host or container was used up; the job goes on from step 2" in told.message


def test_the_count_is_the_groups_own_where_it_has_one(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "sys"
    membership.write_text("4:memory:/docker/abc\n2:cpu:/\n0::/user.slice\n")
    assert [path.relative_to(root).as_posix() for path in _of_cgroup(membership, root)] == [
        "memory/docker/abc/memory.oom_control",
        "memory/memory.oom_control",
        "user.slice/memory.events",
        "unified/user.slice/memory.events",
    ]
    assert _of_cgroup(tmp_path / "none", root) == []
