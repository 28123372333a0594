"""Reads a JSONL data file row by row, plain or gzip; the shapes that a row may have are in `dpo_core.data.rows`.

Nothing in a file can stop the reader: every line becomes a record or a RowProblem with its number, and
what is wrong with the file as a whole becomes a FileProblem.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dpo_core.data.columns import rename
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import Example, FileProblem, Pair, RowProblem
from dpo_core.data.rows import parse_row
from dpo_core.data.turns import BadRow
from dpo_core.data.unpack import BadPackage, Lines, open_lines

MAX_LINE_BYTES = 8 * 1024 * 1024
"""A longer line is refused unread, so that memory stays bounded."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row that is cut out of its file, and not looked into yet; picklable."""

    line: int
    content: bytes | RowProblem
    """JSON text; or what is wrong with a row that can't be cut out."""


def raw_rows(path: Path) -> Iterator[RawRow | FileProblem]:
    """Cuts a file into rows, cheaply and in constant memory.

    UTF-8, one JSON object a line; gzip, a byte order mark, CRLF and blank lines are accepted. A FileProblem
    comes last: the file has no row, or is gzip and can't be unpacked to its end.

    Raises:
        OSError: the file can't be opened or read.
    """
    number, empty = 0, True
    with open_lines(path) as file:
        try:
            for number, line in _lines(file):
                empty = False
                yield RawRow(number, line)
        except BadPackage as bad:
            yield FileProblem(number + 1, bad.code, bad.message)
            return
    if empty:
        yield FileProblem(1, "empty_file", "The file has no rows. Write one JSON object per line.")


def records(raw: RawRow, options: ReadOptions) -> list[Pair | Example | RowProblem]:
    """What a row says: Pairs (`dpo`), Examples (`supervised`), or what is wrong with it."""
    if isinstance(raw.content, RowProblem):
        return [raw.content]
    try:
        row = rename(_decode(raw.content, raw.line), options.columns)
        return [parse_row(row, options.method, raw.line)]
    except BadRow as bad:
        return [RowProblem(raw.line, bad.code, bad.field, bad.message)]


def read_rows(path: Path, options: ReadOptions) -> Iterator[Pair | Example | RowProblem | FileProblem]:
    """`raw_rows` and `records` in one.

    Raises:
        OSError: the file can't be opened or read.
    """
    for raw in raw_rows(path):
        if isinstance(raw, FileProblem):
            yield raw
        else:
            yield from records(raw, options)


def _lines(file: Lines) -> Iterator[tuple[int, bytes | RowProblem]]:
    """Lines that aren't blank, without their ends, with 1-based numbers."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if len(line) > MAX_LINE_BYTES:
            _skip_rest_of_line(file, line)
            message = f"The line is longer than {MAX_LINE_BYTES // 2**20} MiB. Shorten or remove the row."
            yield number, RowProblem(number, "line_too_long", None, message)
        elif line.strip():
            # An error in the line counts its columns, and an end of line would begin another one.
            yield number, line.rstrip(b"\r\n")


def _skip_rest_of_line(file: Lines, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE_BYTES)


def _decode(raw: bytes, number: int) -> dict[str, object]:
    try:
        row = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        message = f"Byte {error.start + 1} of the line is not UTF-8. Save the file as UTF-8 text, plain or gzip."
        raise BadRow("not_utf8", None, message) from None
    except json.JSONDecodeError as error:
        raise BadRow("not_json", None, _json_hint(raw, number, error)) from None
    except RecursionError:
        raise BadRow("not_json", None, "The JSON is nested too deeply. Flatten or remove the row.") from None
    except ValueError as error:  # NaN, Infinity, or an integer with thousands of digits
        raise BadRow("not_json", None, f"Not valid JSON: {error}. Correct the value.") from None
    if not isinstance(row, dict):
        kind = "a JSON array" if isinstance(row, list) else "a single JSON value"
        raise BadRow("not_an_object", None, f"The line is {kind}, not an object. Write one object {{...}} per line.")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _json_hint(raw: bytes, number: int, error: json.JSONDecodeError) -> str:
    if number == 1 and raw.lstrip().startswith(b"["):
        return "The file looks like one JSON array over several lines. Write one JSON object per line (JSONL)."
    if error.msg.startswith("Unterminated string"):
        what = f"the text that begins at column {error.colno} has no end; the line is cut off, or a quote is missing"
    elif error.pos >= len(error.doc.rstrip()):
        what = f"the line is cut off after column {len(error.doc)}"
    else:
        what = f"{error.msg} at column {error.colno}"
    return f"Not valid JSON: {what}. Write one complete JSON object per line."
