"""Rows of a table that is being written: on disk, and in memory only while they are looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpo_core.data.token_table import BLOCK_ROWS, ROW, RowsOnDisk


def resident_bytes(path: Path) -> int:
    """Of a mapped file, in this process."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    return sum(
        1024 * int(next(it for it in lines if it.startswith("Rss:")).split()[1]) for line in lines if str(path) in line
    )


def test_what_was_looked_at_leaves_memory_and_changes_stay(tmp_path: Path) -> None:
    path, count = tmp_path / "rows", 3 * BLOCK_ROWS + 5
    rows = np.zeros(count, ROW)
    rows["start"] = np.arange(count)
    path.write_bytes(rows.tobytes())
    with open(path, "r+b") as file:
        on_disk, most = RowsOnDisk(file), 0
        for start, block in on_disk.blocks():
            assert (block["start"] == np.arange(start, start + len(block))).all()
            block["chosen"] = start + 1
            most = max(most, resident_bytes(path))
        assert 0 < most < 2 * BLOCK_ROWS * ROW.itemsize, "more than a block, and what the kernel reads around it"
        assert resident_bytes(path) == 0
        assert on_disk.all["chosen"].tolist() == (on_disk.all["start"] // BLOCK_ROWS * BLOCK_ROWS + 1).tolist()
    again = np.fromfile(path, ROW)
    assert set(again["chosen"]) == {1, BLOCK_ROWS + 1, 2 * BLOCK_ROWS + 1, 3 * BLOCK_ROWS + 1}


def test_there_may_be_none(tmp_path: Path) -> None:
    with open(tmp_path / "rows", "w+b") as file:
        on_disk = RowsOnDisk(file)
        on_disk.release()
        assert len(on_disk.all) == 0
        assert list(on_disk.blocks()) == []
