"""Token items in one file that every process maps into its memory: rendered once, read by all, held by none.

A table is a safetensors file that is written as a stream:

    tokens  int32 [tokens]    both sequences of each item, one behind the other
    silent  int32 [spans, 2]  ranges of tokens behind the prompt that carry no loss
    rows    uint8 [items, b]  ROW: where an item's tokens and spans are, and what its row is known by
    facts   uint8 [bytes]     DataFacts as JSON
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from dpo_core.data.facts import DataFacts
from dpo_core.data.fingerprints import FINGERPRINT
from dpo_core.data.records import Spans, TokenExample, TokenItem, TokenPair

ROW = np.dtype(
    [
        ("known", FINGERPRINT),
        ("start", "<i8"),  # where its tokens begin
        ("chosen", "<i4"),  # how many they are; supervised: the only sequence's
        ("rejected", "<i4"),  # 0: an example
        ("chosen_prompt", "<i4"),
        ("rejected_prompt", "<i4"),
        ("silent", "<i8"),  # where its spans begin
        ("chosen_silent", "<i4"),  # how many they are
        ("rejected_silent", "<i4"),
    ]
)
HEADER_BYTES = 1024
"""Kept free at the beginning: a stream's sizes are known at its end."""

BLOCK_ROWS = 2**16
"""Rows that are looked at together, where all of them are."""

Rows = NDArray[np.void]
"""[N] of ROW."""


class TokenTable(Sequence[TokenItem]):
    """The items of a table's file, in the order of the data files; each is made when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError: there is no such file, or it is not a whole table."""
        self.path = path
        with open(path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = int.from_bytes(self._bytes[:8], "little")
        header = json.loads(self._bytes[8 : 8 + size])
        if len(self._bytes) != 8 + size + max(entry["data_offsets"][1] for entry in header.values()):
            raise ValueError(f"{path} is cut off")
        parts = {name: np.frombuffer(self._bytes, np.uint8, e - s, 8 + size + s) for name, (s, e) in _spans(header)}
        self.tokens: NDArray[np.int32] = parts["tokens"].view("<i4")
        self.silent: NDArray[np.int32] = parts["silent"].view("<i4").reshape(-1, 2)
        self.rows: Rows = parts["rows"].view(ROW)
        self.facts = DataFacts.from_json(parts["facts"].tobytes())

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> TokenItem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenItem]: ...
    def __getitem__(self, index: int | slice) -> TokenItem | Sequence[TokenItem]:
        if isinstance(index, slice):
            return Selection(self, np.arange(len(self))[index])
        return item_of(self.rows[index], self.tokens, self.silent)

    def blocks(self) -> Iterator[Rows]:
        """All rows, some at a time, so that whoever copies what it looks at copies little."""
        for start in range(0, len(self.rows), BLOCK_ROWS):
            yield self.rows[start : start + BLOCK_ROWS]


class Selection(Sequence[TokenItem]):
    """Some items of a table, in any order and any number of times."""

    def __init__(self, table: TokenTable, places: NDArray[np.int64]) -> None:
        self.table = table
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> TokenItem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenItem]: ...
    def __getitem__(self, index: int | slice) -> TokenItem | Sequence[TokenItem]:
        if isinstance(index, slice):
            return Selection(self.table, self.places[index])
        return self.table[int(self.places[index])]

    def token_count(self) -> int:
        """Tokens of all sequences."""
        rows = self.table.rows
        return int(rows["chosen"][self.places].sum(dtype=np.int64) + rows["rejected"][self.places].sum(dtype=np.int64))


def _spans(header: dict[str, dict[str, list[int]]]) -> list[tuple[str, tuple[int, int]]]:
    return [(name, (entry["data_offsets"][0], entry["data_offsets"][1])) for name, entry in header.items()]


def item_of(row: np.void, tokens: NDArray[np.int32], silent: NDArray[np.int32]) -> TokenItem:
    line, start, middle = int(row["known"]["line"]), int(row["start"]), int(row["start"] + row["chosen"])
    first, second = _silent(silent, row["silent"], row["chosen_silent"], row["rejected_silent"])
    chosen, prompt = tokens[start:middle].tolist(), int(row["chosen_prompt"])
    if not row["rejected"]:
        return TokenExample(line, chosen, prompt, first)
    rejected = tokens[middle : middle + int(row["rejected"])].tolist()
    return TokenPair(line, chosen, rejected, prompt, int(row["rejected_prompt"]), first, second)


def _silent(silent: NDArray[np.int32], start: int, chosen: int, rejected: int) -> tuple[Spans, Spans]:
    middle = start + chosen
    pairs = silent[start:middle], silent[middle : middle + rejected]
    first, second = (tuple((int(begin), int(end)) for begin, end in part) for part in pairs)
    return first, second


class RowsOnDisk:
    """Rows mapped from a file; what was looked at does not stay in memory, and a change of it is in the file."""

    def __init__(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        self._bytes = mmap.mmap(file.fileno(), size) if size else None
        self.all: Rows = np.empty(0, ROW) if self._bytes is None else np.frombuffer(self._bytes, ROW)
        """Whoever looks at many should `release` them now and then."""

    def blocks(self) -> Iterator[tuple[int, Rows]]:
        """All rows, BLOCK_ROWS at a time, each block with the place of its first."""
        for start in range(0, len(self.all), BLOCK_ROWS):
            yield start, self.all[start : start + BLOCK_ROWS]
            self.release()

    def release(self) -> None:
        """Lets go of the memory that the rows take in this process, not of the rows."""
        if self._bytes is not None:
            self._bytes.madvise(mmap.MADV_DONTNEED)


class TableWriter:
    """Writes a table as its items come; it appears at `path` whole, when it is finished, or not at all."""

    def __init__(self, path: Path) -> None:
        """Raises OSError: the disk is full, or the folder can't be written to."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix=".table-", dir=path.parent)
        self._files = {name: self._open(name) for name in ("tokens", "silent", "rows")}
        self._files["tokens"].write(b" " * HEADER_BYTES)
        self._token_count = self._span_count = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        self._folder.cleanup()

    def add(self, rows: Rows, tokens: NDArray[np.int32], silent: NDArray[np.int32]) -> None:
        """Items behind those there are; `start` and `silent` of `rows` count from the beginning of these arrays."""
        self._files["rows"].write(self.place(rows, tokens, silent).tobytes())

    def place(self, rows: Rows, tokens: NDArray[np.int32], silent: NDArray[np.int32]) -> Rows:
        """Writes the tokens alone; returns the rows that point to them."""
        placed = rows.copy()
        placed["start"] += self._token_count
        placed["silent"] += self._span_count
        self._files["tokens"].write(tokens.astype("<i4").tobytes())
        self._files["silent"].write(silent.astype("<i4").tobytes())
        self._token_count += len(tokens)
        self._span_count += len(silent)
        return placed

    def rows(self) -> RowsOnDisk:
        """Those that were added: a change of them counts. None with `chosen` 0 will be written."""
        self._files["rows"].flush()
        return RowsOnDisk(self._files["rows"])

    def finish(self, facts: DataFacts) -> TokenTable:
        """Puts the parts together. The writer is of no use afterwards."""
        whole, count = self._files["tokens"], 0
        self._files["silent"].seek(0)
        shutil.copyfileobj(self._files["silent"], whole)
        for _, block in self.rows().blocks():
            kept = block[block["chosen"] > 0]
            whole.write(kept.tobytes())
            count += len(kept)
        text = facts.to_json()
        whole.write(text)
        whole.seek(0)
        whole.write(self._header(count, len(text)))
        whole.flush()
        os.fsync(whole.fileno())  # a name must not outlive a power cut that the bytes don't
        Path(whole.name).rename(self.path)
        return TokenTable(self.path)

    def _header(self, count: int, facts: int) -> bytes:
        shapes = {
            "tokens": ("I32", [self._token_count]),
            "silent": ("I32", [self._span_count, 2]),
            "rows": ("U8", [count, ROW.itemsize]),
            "facts": ("U8", [facts]),
        }
        header, end = {}, 0
        for name, (dtype, shape) in shapes.items():
            start, end = end, end + int(np.prod(shape)) * (4 if dtype == "I32" else 1)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        size = HEADER_BYTES - 8
        return size.to_bytes(8, "little") + json.dumps(header).encode().ljust(size)

    def _open(self, name: str) -> BinaryIO:
        return open(Path(self._folder.name) / name, "w+b")
