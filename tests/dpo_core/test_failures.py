from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from dpo_core import program
from dpo_core.errors import user_error
from dpo_core.failures import classify, drop_echo, end_with, write_failed
from dpo_core.run_directory import Failure, RunDirectory, Status


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (user_error("bad_row", "Line 3 has no prompt."), "user", "bad_row"),
        (torch.OutOfMemoryError("CUDA out of memory."), "resource", "out_of_memory"),
        (MemoryError(), "resource", "out_of_memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …"), "resource", "out_of_memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            "resource",
            "out_of_memory",
        ),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "resource", "disk_full"),
        (OSError(errno.ENOSPC, "No space left on device"), "resource", "disk_full"),
        (RuntimeError("Connection closed by peer [127.0.0.1]:1"), "infrastructure", "rank_lost"),
        (RuntimeError("first line\nsecond line"), "infrastructure", "trainer_error"),
    ],
)
def test_classify(error: BaseException, kind: str, code: str) -> None:
    failure = classify(error)
    assert (failure.kind, failure.code) == (kind, code)


def test_a_real_allocation_that_fails_is_a_resource_failure() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.int8)
    assert classify(caught.value).kind == "resource"


def test_a_spec_of_another_shape_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(ValueError, match="training_file") as caught:
        RunDirectory(tmp_path).spec()
    assert classify(caught.value).code == "invalid_spec"


def test_the_first_failure_stands(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_status(Status(state="running", step=4, total_steps=9))
    first = Failure(kind="user", code="first", message="the cause")
    write_failed(directory, first)
    write_failed(directory, Failure(kind="infrastructure", code="second", message="its echo"))
    status = directory.status()
    assert status == Status(state="failed", step=4, total_steps=9, failure=first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failure.json", "status.json"]


def test_the_word_of_a_peer_gives_way_to_that_of_the_launcher(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    write_failed(directory, classify(RuntimeError("Connection closed by peer [127.0.0.1]:1")))
    drop_echo(directory)
    killed = Failure(kind="infrastructure", code="rank_lost", message="Rank 1 was killed (SIGKILL).")
    write_failed(directory, killed)
    drop_echo(directory)
    write_failed(directory, cause := Failure(kind="user", code="first", message="the cause"))
    drop_echo(directory)
    write_failed(directory, killed)
    status = directory.status()
    assert status is not None and status.failure == cause


def test_what_succeeded_stays_though_its_end_raises(tmp_path: Path) -> None:
    """As leaving a process group may, when all is published."""
    directory = RunDirectory(tmp_path)
    directory.write_status(Status(state="succeeded", step=6))
    end_with(directory, RuntimeError("Connection closed by peer"))
    assert directory.status() == Status(state="succeeded", step=6)


def test_what_succeeded_stays_though_a_stop_comes_right_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RunDirectory.write_status

    def stopped_behind(directory: RunDirectory, status: Status) -> None:
        real(directory, status)
        if status.state == "succeeded":
            raise program.Stopped

    monkeypatch.setattr(RunDirectory, "write_status", stopped_behind)
    assert program.run(tmp_path, lambda _: Status(state="succeeded")) == 0
    assert RunDirectory(tmp_path).status() == Status(state="succeeded")
