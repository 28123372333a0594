"""Cuts a CSV file (RFC 4180) into rows: cells by the names of the header, which are its columns.

Commas, semicolons or tabs, whichever gives the header most names. A cell may hold a conversation as JSON.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from io import BufferedReader

from dpo_core.data.fields import BadRow, Row, shown
from dpo_core.data.json_values import decode
from dpo_core.data.preference import BETTER, WORSE
from dpo_core.data.prompts import CONVERSATIONS, QUESTIONS
from dpo_core.data.records import RowProblem
from dpo_core.data.scored import ANSWERS, SCORES
from dpo_core.data.supervised import COMPLETIONS
from dpo_core.data.unpack import BadFile

DELIMITERS = ",;\t"
NOT_IN_A_NAME = re.compile(r'[{}\[\]":\x00-\x08]')
MAX_NAME = 100

ALWAYS_JSON = (*CONVERSATIONS, *ANSWERS, *SCORES, "preferred_output", "non_preferred_output", "history")
"""Fields that can't be text, so that a cell of one is JSON."""

MAY_BE_TURNS = ("prompt", "input", *QUESTIONS, *BETTER, *WORSE, *COMPLETIONS)
TURNS = re.compile(r"""\s*(\[\s*\{\s*['"](role|from|content|value)|\{\s*['"](role|from|messages))['"]\s*:""")
"""Begins messages, as JSON or as Python prints them, whose first field is a usual one."""

Cells = dict[str, str]


def delimiter_of(head: bytes) -> str | None:
    """What divides the header in the first bytes of a file; None where it is no header of a CSV file."""
    line, end, _ = head.partition(b"\n")
    text = line.decode("utf-8", "replace").rstrip("\r")
    if not end or not text.strip():
        return None
    best, names = max(((sign, _cells(text, sign)) for sign in DELIMITERS), key=lambda it: len(it[1]))
    if len(names) == 1 and names[0].strip() not in ALWAYS_JSON:
        return None
    fine = all(len(name) <= MAX_NAME and not NOT_IN_A_NAME.search(name) for name in names)
    return best if fine and any(name.strip() for name in names) else None


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def csv_rows(file: BufferedReader, delimiter: str, limit: int) -> Iterator[tuple[int, Cells | RowProblem]]:
    """Each row that isn't blank, and the line it begins in.

    Raises:
        BadFile: a name is in the header twice, or a row has more than `limit` bytes: a quote has no end, often.
    """
    # csv keeps its limit for the whole process; rows are bounded by _Lines, which knows where they begin.
    csv.field_size_limit(max(limit, csv.field_size_limit()))
    lines = _Lines(file, limit)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names = [name.strip() for name in next(reader)]
    twice = next((name for index, name in enumerate(names) if name and name in names[:index]), None)
    if twice is not None:
        raise BadFile("bad_header", f"The header has the column {shown(twice)} twice. Rename or remove one.", 1)
    while True:
        lines.begin_row()
        first = lines.number + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = str(error).replace("'\t'", "a tab")
            message = f"The row is no CSV: {reason}. A cell with quotes stands in quotes, each of its own twice."
            yield first, RowProblem(first, "not_csv", None, message + lines.where_it_ends())
            continue
        if cells is None:
            return
        if len(cells) == len(names):
            yield first, {name: cell for name, cell in zip(names, cells, strict=True) if name}
        elif any(cells):
            message = (
                f"The row has {len(cells)} cells, and the header {len(names)}. A cell that holds {shown(delimiter)} or "
                "ends of lines stands in quotes."
            )
            yield first, RowProblem(first, "cells_missing", None, message + lines.where_it_ends())


class _Lines:
    """Lines of text; bytes that are no UTF-8 come as surrogates, for `unfold` to name their column."""

    def __init__(self, file: BufferedReader, limit: int) -> None:
        self.number = 0
        self._file = file
        self._limit = limit
        self._size = 0
        self._first = 1

    def begin_row(self) -> None:
        self._size, self._first = 0, self.number + 1

    def where_it_ends(self) -> str:
        """A sentence about a bad row of several lines; nothing to say of others."""
        return (
            f" It runs to line {self.number}: a quote in it has no end, perhaps." if self.number > self._first else ""
        )

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(self._limit + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._size += len(line)
        if self._size > self._limit:
            message = (
                f"The row that begins in line {self._first} is longer than {self._limit // 2**20} MiB. A quote in it "
                "has no end, or a cell is too long; where the next row begins can't be told. Correct or remove it."
            )
            raise BadFile("row_too_long", message, self._first)
        return line.decode("utf-8", "surrogateescape")


def unfold(cells: Row) -> dict[str, object]:
    """The row that cells stand for: conversations, tools and lists are parsed, other text stays text.

    A prompt or an answer may be text that happens to be JSON, so there only what looks like messages is parsed.

    Raises:
        BadRow: a cell is no UTF-8, or a conversation in it no JSON.
    """
    row: dict[str, object] = dict(cells)
    for name, cell in cells.items():
        if not isinstance(cell, str):
            continue
        if not cell.isascii():
            _refuse_other_encodings(name, cell)
        if not cell.startswith(("[", "{", " ", "\n")):
            continue
        if name in ALWAYS_JSON:
            row[name] = _json_cell(name, cell)
        elif name in MAY_BE_TURNS:
            row[name] = _turns_or_text(name, cell)
    return row


def _turns_or_text(name: str, cell: str) -> object:
    """Messages, or an `input` that holds some; any other text stays text, unless it looks like messages gone wrong."""
    if TURNS.match(cell):
        return _json_cell(name, cell)
    try:
        value = decode(cell)
    except (ValueError, RecursionError):
        return cell
    items = value if isinstance(value, list) else [value]
    meant = [isinstance(item, dict) and ("role" in item or "from" in item or "messages" in item) for item in items]
    return value if meant and all(meant) else cell


def _refuse_other_encodings(name: str, cell: str) -> None:
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        message = f"The column {shown(name)} holds bytes that are not UTF-8. Save the file as UTF-8."
        raise BadRow("not_utf8", name, message) from None


def _json_cell(name: str, cell: str) -> object:
    try:
        return decode(cell)
    except (ValueError, RecursionError) as error:
        message = (
            f"The cell in {shown(name)} begins like a list or an object, and is not valid JSON: {error}. "
            "Write it as JSON (in Python: json.dumps), with double quotes."
        )
        raise BadRow("not_json", name, message) from None
