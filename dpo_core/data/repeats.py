"""Finds rows that say again, or contradict, what an earlier row said, and prompts that come back.

Memory does not grow with the data: fingerprints lie on disk, dealt to partitions by their first byte, so that equal
ones meet in one partition and one partition is looked at at a time. Their file has no name, so nothing is left of it
however this process ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dpo_core.data.fingerprints import FINGERPRINT
from dpo_core.data.problems import LINES_KEPT, Finding, Tally

PARTITIONS = 64
ROWS_IN_MEMORY = 2**16

MESSAGES = {
    "duplicate_row": "{line} repeats an earlier row ({earlier}), so that row counts twice. "
    "Remove one, unless it is meant.",
    "opposite_labels": "{line} prefers the answer that {earlier} rejects, to the same prompt: they work against each "
    "other. Remove the wrong one.",
    "repeated_prompt": "{line} asks what {earlier} asked. A validation split keeps rows of one prompt on one side.",
}

Array = NDArray[np.void]
"""[N] of FINGERPRINT."""


class Partitions:
    """Fingerprints by the first byte of one of their digests; equal digests come back in one array."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._file: IO[bytes] | None = None
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(PARTITIONS)]
        """For each partition where its rows lie in the file: the offset and how many they are."""

        self._held: list[Array] = []
        self._rows = 0

    def add(self, rows: Array) -> None:
        """Raises OSError where the temporary folder has no room."""
        self._held.append(rows)
        self._rows += len(rows)
        if self._rows >= ROWS_IN_MEMORY:
            self._spill()

    def take(self) -> Iterator[Array]:
        """All of them, once: nothing is left behind them."""
        if self._file is None:
            yield np.concatenate(self._held) if self._held else np.empty(0, FINGERPRINT)
            return
        self._spill()
        with self._file as file:
            for pieces in self._pieces:
                if pieces:
                    yield np.concatenate([_read(file, *piece) for piece in pieces])

    def _spill(self) -> None:
        if not self._held:
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (`take` closes it)
        rows = np.concatenate(self._held)
        places = np.ascontiguousarray(rows[self._field]).view(np.uint8).reshape(len(rows), -1)[:, 0] % PARTITIONS
        for place in np.unique(places):
            mine = rows[places == place]
            self._pieces[place].append((self._file.tell(), len(mine)))
            self._file.write(mine.tobytes())
        self._held, self._rows = [], 0


def _read(file: IO[bytes], offset: int, count: int) -> Array:
    file.seek(offset)
    return np.frombuffer(file.read(count * FINGERPRINT.itemsize), FINGERPRINT)


class Repeats:
    """The rows of some files; texts are compared exactly, prompts normalised."""

    def __init__(self) -> None:
        self._by_content = Partitions("content")

    def add(self, rows: Array) -> None:
        self._by_content.add(rows)

    def findings(self, names: Sequence[str] = ("",)) -> list[list[Finding]]:
        """For each file `duplicate_row` and `opposite_labels`, where it has any; its rows are those that came later.

        `names` are the files' own, for messages where there are several.
        """
        tallies = [Tally() for _ in names]
        for rows in self._by_content.take():
            later, first = _repeating(rows, "content")
            against = later["swapped"] != first["swapped"]
            for file, tally in enumerate(tallies):
                for code, kind in (("duplicate_row", ~against), ("opposite_labels", against)):
                    chosen = kind & (later["file"] == file)
                    tally.merge(_finding(code, later[chosen], first[chosen], names))
        return [tally.findings() for tally in tallies]


class Prompts:
    """The normalised prompts of one file."""

    def __init__(self) -> None:
        self._by_prompt = Partitions("prompt")

    def add(self, rows: Array) -> None:
        self._by_prompt.add(rows)

    def take(self) -> tuple[int, list[Finding]]:
        """How many different ones there are; and `repeated_prompt`, where an earlier row asked the same."""
        tally, different = Tally(), 0
        for rows in self._by_prompt.take():
            different += len(np.unique(rows["prompt"]))
            tally.merge(_finding("repeated_prompt", *_repeating(rows, "prompt"), ("",)))
        return different, tally.findings()


def _repeating(rows: Array, field: str) -> tuple[Array, Array]:
    """Rows whose digest `field` an earlier one had, and beside each the first that had it."""
    rows = rows[np.lexsort((rows["row"], rows["file"], rows[field]))]
    new = np.ones(len(rows), bool)
    new[1:] = rows[field][1:] != rows[field][:-1]
    first = rows[np.flatnonzero(new)[np.cumsum(new) - 1]]
    # One row may make several pairs, and those may be equal.
    later = ~new & ((rows["row"] != first["row"]) | (rows["file"] != first["file"]))
    return rows[later], first[later]


def _finding(code: str, later: Array, first: Array, names: Sequence[str]) -> list[Finding]:
    """One finding about rows of one file, or none; beside each row of `later` the one in `first` that it repeats."""
    if not len(later):
        return []
    order = np.argsort(later["row"], kind="stable")[:LINES_KEPT]
    place = order[0]
    earlier = f"line {first['line'][place]}"
    if len(names) > 1:
        earlier += f" of {names[first['file'][place]]}"
    message = MESSAGES[code].format(line=f"Line {later['line'][place]}", earlier=earlier)
    return [Finding(code, message, len(later), later["line"][order].tolist())]
