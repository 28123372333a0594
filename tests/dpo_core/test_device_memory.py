from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from dpo_core.device_memory import gpu_memory, host_memory, memory_of_a_rank


@pytest.mark.parametrize(("limit", "expected"), [("1048576\n", 2**20), ("max\n", None), (None, None)])
def test_a_containers_limit_counts(tmp_path: Path, limit: str | None, expected: int | None) -> None:
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)
    assert host_memory(file) == (expected or psutil.virtual_memory().total)


def test_a_rank_has_its_share_of_the_host() -> None:
    assert memory_of_a_rank("cpu", 4) == host_memory() // 4


@pytest.mark.parametrize(
    ("answer", "expected"), [("echo 81559; echo 40960", 40960 * 2**20), ("echo none", None), ("exit 9", None)]
)
def test_the_smallest_gpu_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, expected: int | None
) -> None:
    """The driver's program is a script here: its answers can't be had where there is no GPU."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpu_memory() == memory_of_a_rank("cuda", 2) == expected
