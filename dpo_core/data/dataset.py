"""Data files to one token table: what `prepare` measures and the trainer trains on.

Order is the files' order; shuffling is the trainer's. Every core renders; memory does not grow with the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpo_core.data.facts import DataFacts, FileFacts
from dpo_core.data.formats import RawRow, raw_rows
from dpo_core.data.options import ReadOptions
from dpo_core.data.parallel import chunks, map_in_order
from dpo_core.data.records import FileProblem
from dpo_core.data.render import Renderer
from dpo_core.data.rendering import Chunk, Rendering
from dpo_core.data.repeats import Repeats
from dpo_core.data.token_table import Rows, RowsOnDisk, TableWriter, TokenTable

Limit = int | None | Callable[[Counter[int]], int]
"""Tokens that a sequence may have: a number, no limit, or what follows from the lengths of all rows."""


def load(
    files: Sequence[Path],
    options: ReadOptions,
    renderer: Callable[[], Renderer],
    limit: Limit,
    table: Path,
    *,
    names: Sequence[str] = ("",),
    processes: int | None = None,
) -> TokenTable:
    """Reads every row of `files` and writes their items to `table`; both callables are picklable.

    `names` are the files' own, where there are several. `processes` is as many as there are cores.

    Raises:
        RunError: the rows need a chat template that the model doesn't have, or a process was killed.
        OSError: a file can't be read, or the disk is full.
    """
    rendering = Rendering(renderer, options, limit if isinstance(limit, int) else None)
    with TableWriter(table) as writer:
        facts = _render_all(files, rendering, writer, processes)
        if callable(limit):
            facts.max_length = limit(facts.lengths)
            _cut(files, replace(rendering, max_length=facts.max_length), writer, facts, processes)
        _look_for_repeats(writer.rows(), facts, names)
        return writer.finish(facts)


def _render_all(files: Sequence[Path], rendering: Rendering, writer: TableWriter, processes: int | None) -> DataFacts:
    facts = DataFacts([FileFacts() for _ in files], max_length=rendering.max_length)
    for portion in map_in_order(rendering, _chunks(files), processes):
        facts.files[portion.file].merge(portion.facts)
        facts.files[portion.file].merge(portion.cut)
        facts.lengths.update(portion.lengths)
        facts.largest_token = max(facts.largest_token, int(portion.tokens.max(initial=-1)))
        writer.add(portion.rows, portion.tokens, portion.silent)
    return facts


def _chunks(files: Sequence[Path], chosen: Sequence[NDArray[np.bool_]] | None = None) -> Iterator[Chunk]:
    """The rows of all files; with `chosen`, by file and number of the row, only those that are true there."""
    for number, path in enumerate(files):
        rows: Iterator[RawRow | FileProblem] = iter(raw_rows(path))
        if chosen is not None:
            mine = chosen[number]
            rows = (raw for raw in rows if isinstance(raw, RawRow) and raw.row < len(mine) and mine[raw.row])
        for chunk in chunks(rows):
            yield Chunk(number, chunk)


def _cut(
    files: Sequence[Path], rendering: Rendering, writer: TableWriter, facts: DataFacts, processes: int | None
) -> None:
    """Makes the rows that are too long fit, each at the place it has already; they alone are parsed again."""
    rows = writer.rows()
    chosen = _too_long(rows, rendering.max_length or 0, len(files))
    if not any(map(len, chosen)):
        return
    slots = _Slots(rows, chosen)
    for portion in map_in_order(rendering, _chunks(files, chosen), processes):
        facts.files[portion.file].merge(portion.cut)  # what the rows are when they are whole is known already
        slots.fill(writer.place(portion.rows, portion.tokens, portion.silent))
    for number, file in enumerate(facts.files):
        file.pairs = _count(rows, number)


def _too_long(rows: RowsOnDisk, max_length: int, files: int) -> list[NDArray[np.bool_]]:
    """Which rows of each file, by their numbers, have a longer sequence."""
    found = [[np.empty(0, np.int64)] for _ in range(files)]
    for _, block in rows.blocks():
        long = block["known"][np.maximum(block["chosen"], block["rejected"]) > max_length]
        for file, numbers in enumerate(found):
            numbers.append(long["row"][long["file"] == file])
    return [_marked(np.concatenate(numbers)) for numbers in found]


def _marked(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    marked = np.zeros(numbers.max(initial=-1) + 1, bool)
    marked[numbers] = True
    return marked


class _Slots:
    """Places of what some rows became. They are emptied, and filled again with what is left of the same rows."""

    def __init__(self, rows: RowsOnDisk, chosen: Sequence[NDArray[np.bool_]]) -> None:
        self._rows = rows
        emptied = [np.empty(0, np.int64)]
        for start, block in rows.blocks():
            file, row = block["known"]["file"], block["known"]["row"]
            for number, wanted in enumerate(chosen):
                mine = np.flatnonzero((file == number) & (row < len(wanted)))
                mine = mine[wanted[row[mine]]]
                block["chosen"][mine] = 0
                emptied.append(mine + start)
        self._places = iter(np.concatenate(emptied))

    def fill(self, rows: Rows) -> None:
        """In the order of the files; a row makes no more than it made."""
        for row in rows:
            place = next(place for place in self._places if _same_row(self._rows.all[place], row))
            self._rows.all[place] = row
        self._rows.release()


def _same_row(one: np.void, other: np.void) -> bool:
    return bool(one["known"]["file"] == other["known"]["file"] and one["known"]["row"] == other["known"]["row"])


def _count(rows: RowsOnDisk, file: int) -> int:
    return sum(int(((block["known"]["file"] == file) & (block["chosen"] > 0)).sum()) for _, block in rows.blocks())


def _look_for_repeats(rows: RowsOnDisk, facts: DataFacts, names: Sequence[str]) -> None:
    repeats = Repeats()
    for _, block in rows.blocks():
        repeats.add(np.ascontiguousarray(block["known"][block["chosen"] > 0]))
    for file, findings in zip(facts.files, repeats.findings(names), strict=True):
        file.findings.merge(findings)
