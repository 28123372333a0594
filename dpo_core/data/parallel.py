"""Work on a stream of chunks with every core, this process among them: results in order, few chunks in memory.

No child outlives this process, however it ends: the kernel kills them when it dies (dpo_core/process.py).
Call it from a thread that outlives the work, because the death signal is tied to the thread that forks.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, Generic, TypeVar

from dpo_core.data.formats import RawRow
from dpo_core.data.records import FileProblem, RowProblem
from dpo_core.errors import reader_killed
from dpo_core.process import die_with, limit_memory

Given = TypeVar("Given")
Made = TypeVar("Made")

CHUNK_BYTES = 2**19
"""Of rows in one chunk: some tenths of a second's work, so that a run that is stopped does not wait long."""

ROW_BYTES = 256
"""What a row takes besides its text, roughly: a chunk of rows that say next to nothing has an end, too."""

CELL_BYTES = 64

MEMORY_BYTES = 4 * 2**30
"""What a process may take beside what it has at its start: a row of 8 MiB takes less. A chat template, a stranger's,
could ask for more at once."""

CHUNKS_AHEAD = 6
"""For each process so many are worked at, or done, before the next result is there: other processes take a second to
start, and meanwhile this one goes ahead."""

CHUNKS_ALONE = 6
"""So many are worked through here: to start the other processes would take longer."""


def chunks(rows: Iterable[RawRow | FileProblem]) -> Iterator[list[RawRow | FileProblem]]:
    """Neighbours in lists of about CHUNK_BYTES; never an empty list."""
    chunk: list[RawRow | FileProblem] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += _size(row)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _size(row: RawRow | FileProblem) -> int:
    """Of a row in memory, roughly in bytes."""
    if isinstance(row, FileProblem) or isinstance(row.content, RowProblem):
        return ROW_BYTES
    if isinstance(row.content, bytes):
        return ROW_BYTES + len(row.content)
    return ROW_BYTES + sum(CELL_BYTES + len(cell) for cell in row.content.values())


def map_in_order(
    start: Callable[[], Callable[[Given], Made]], given: Iterable[Given], processes: int | None = None
) -> Iterator[Made]:
    """`start()` once in every process, and what it returns on each of `given`; all of them are picklable.

    This process works, too, whenever the next result is not there yet. `processes` counts it, and is as many as there
    are cores. Few chunks, or one process, are worked through here. An exception of the work is raised here.

    Raises:
        RunError: kind `resource`; a process was killed.
    """
    processes = len(os.sched_getaffinity(0)) if processes is None else processes
    remaining = iter(given)
    first = list(islice(remaining, CHUNKS_ALONE + 1))
    everything = chain(first, remaining)
    if processes == 1 or len(first) <= CHUNKS_ALONE:
        yield from map(start(), everything)
        return
    others = processes - 1
    pool = ProcessPoolExecutor(
        others,
        # not fork: what this process has of threads and locks would come along
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(os.getpid(), _Once(start)),
    )
    try:
        yield from _shared(pool, everything, others, _Once(start))
    except BrokenProcessPool as broken:
        raise reader_killed() from broken
    finally:
        pool.shutdown(cancel_futures=True)


def _shared(pool: ProcessPoolExecutor, given: Iterable[Any], others: int, work: Callable[[Any], Any]) -> Iterator[Any]:
    """Results in order. Chunks wait for the `others` first; while a result isn't there, one is done here."""
    remaining = iter(given)
    results: deque[Future[Any]] = deque()
    while True:
        unfinished, room = sum(not result.done() for result in results), CHUNKS_AHEAD * (others + 1) - len(results)
        submitted = max(0, min(2 * others - unfinished, room))
        results.extend(pool.submit(_work, chunk) for chunk in islice(remaining, submitted))
        if not results:
            return
        if not results[0].done() and submitted < room:
            mine = [work(chunk) for chunk in islice(remaining, 1)]
            results.extend(map(_done, mine))
            if mine:
                continue
        yield results.popleft().result()


def _done(made: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(made)
    return future


class _Once(Generic[Given, Made]):
    """Starts with the first chunk: an exception then goes the way of all others, and is not lost in a log."""

    def __init__(self, start: Callable[[], Callable[[Given], Made]]) -> None:
        self._start = start
        self._started: Callable[[Given], Made] | None = None

    def __call__(self, chunk: Given) -> Made:
        if self._started is None:
            self._started = self._start()
        return self._started(chunk)


# A pool has no other place for what each of its processes keeps from task to task.
_worker: Callable[[Any], Any]


def _begin(parent: int, worker: Callable[[Any], Any]) -> None:
    """In every process of the pool, before its first chunk."""
    global _worker  # noqa: PLW0603
    die_with(parent)
    limit_memory(MEMORY_BYTES)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores among themselves
    _worker = worker


def _work(chunk: Any) -> Any:
    return _worker(chunk)
