"""Real processes: what they make, in which order, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from dpo_core.data.formats import RawRow
from dpo_core.data.parallel import (
    CHUNK_BYTES,
    CHUNKS_AHEAD,
    CHUNKS_ALONE,
    MEMORY_BYTES,
    ROW_BYTES,
    chunks,
    map_in_order,
)
from dpo_core.data.records import FileProblem, RowProblem
from dpo_core.errors import RunError, user_error
from tests.dpo_core.runs import all_gone


def squarer(offset: int) -> Callable[[int], tuple[int, int]]:
    return partial(_square, offset)


def _square(offset: int, number: int) -> tuple[int, int]:
    return number**2 + offset, os.getpid()


def refuser() -> Callable[[int], int]:
    raise user_error("no", "This can't be.")


def killer(spared: int) -> Callable[[int], int]:
    """Of every process but one."""

    def work(number: int) -> int:
        if os.getpid() != spared:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return work


def test_neighbours_are_joined_to_chunks() -> None:
    rows: list[RawRow | FileProblem] = [RawRow(line, line, b"x" * (CHUNK_BYTES // 2)) for line in range(1, 4)]
    rows += [RawRow(4, 4, b"x" * CHUNK_BYTES), FileProblem(5, "truncated_gzip", "cut off")]
    assert list(chunks(rows)) == [rows[:2], rows[2:4], rows[4:]]
    assert list(chunks([])) == []


@pytest.mark.parametrize(
    "content",
    [b"{}", b"", dict.fromkeys("abcdef", ""), RowProblem(1, "cells_missing", None, "The row has 2 cells.")],
)
def test_a_chunk_of_rows_that_say_nothing_has_an_end(content: bytes | dict[str, str] | RowProblem) -> None:
    found = list(chunks(RawRow(1, number, content) for number in range(1, 10_001)))
    assert sum(map(len, found)) == 10_000
    assert max(map(len, found)) <= CHUNK_BYTES // ROW_BYTES


def test_results_come_in_order_from_several_processes_and_little_is_read_ahead() -> None:
    read: list[int] = []

    def given() -> Iterator[int]:
        for number in range(50):
            read.append(number)
            yield number

    found = []
    for made in map_in_order(partial(squarer, 1), given(), processes=2):
        found.append(made)
        assert len(read) - len(found) <= CHUNKS_AHEAD * 2
    assert [square for square, _ in found] == [number**2 + 1 for number in range(50)]
    assert len({pid for _, pid in found} - {os.getpid()}) == 1


def test_this_process_goes_ahead_while_others_start() -> None:
    """The first chunk is another's, which takes its time to start; those behind it that nobody has are done here."""
    pids = [pid for _, pid in map_in_order(partial(squarer, 0), range(CHUNKS_AHEAD * 2), processes=2)]
    assert pids[0] == pids[1] != os.getpid()
    assert set(pids[2:]) == {os.getpid()}


@pytest.mark.parametrize(("count", "processes"), [(CHUNKS_ALONE, 2), (50, 1)])
def test_little_work_stays_here(count: int, processes: int) -> None:
    assert {pid for _, pid in map_in_order(partial(squarer, 0), range(count), processes)} == {os.getpid()}


def test_what_a_process_raises_is_raised_here() -> None:
    with pytest.raises(RunError, match="can't be") as caught:
        list(map_in_order(refuser, range(50), processes=2))
    assert caught.value.failure.kind == "user"


def test_a_process_that_is_killed_is_named() -> None:
    with pytest.raises(RunError, match="was killed") as caught:
        list(map_in_order(partial(killer, os.getpid()), range(50), processes=2))
    assert (caught.value.failure.kind, caught.value.failure.code) == ("resource", "reader_killed")


def taker() -> Callable[[int], int]:
    return lambda number: len(bytearray(number))


def test_a_process_that_takes_too_much_memory_is_refused_it_and_lives_on() -> None:
    with pytest.raises(MemoryError):
        list(map_in_order(taker, [2 * MEMORY_BYTES, *[1] * 2 * CHUNKS_ALONE], processes=2))


def test_who_stops_early_leaves_no_process_behind() -> None:
    before = set(psutil.Process().children())
    results = map_in_order(partial(squarer, 0), range(1000), processes=2)
    assert next(results)[0] == 0
    results.close()
    left = set(psutil.Process().children()) - before
    assert [child for child in left if "resource_tracker" not in " ".join(child.cmdline())] == []


PARENT = """
import sys, time
from pathlib import Path
from dpo_core.data.parallel import map_in_order
from tests.dpo_core.data.test_parallel import sleeper
if __name__ == "__main__":
    list(map_in_order(sleeper, [sys.argv[1]] * 50, processes=3))
"""


def sleeper() -> Callable[[str], None]:
    return _sleep


def _sleep(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(300)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path, sig: signal.Signals) -> None:
    program = tmp_path / "program.py"
    program.write_text(PARENT)
    pids = tmp_path / "pids"
    pids.mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.Popen([sys.executable, str(program), str(pids)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while len(list(pids.iterdir())) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        children = [psutil.Process(int(path.name)) for path in pids.iterdir()]
        parent.send_signal(sig)
        parent.wait(60)
    finally:
        parent.kill()
    assert len(children) == 3
    assert all_gone(children)
