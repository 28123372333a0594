"""Reads a JSONL data file row by row, plain or gzip; the shapes that a row may have are in `dpo_core.data.rows`.

Nothing in a file can stop the reader: every line becomes a record or a RowProblem with its number, and
what is wrong with the file as a whole becomes a FileProblem.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from dpo_core.data.records import Example, FileProblem, Pair, RowProblem
from dpo_core.data.rows import parse_row
from dpo_core.data.turns import BadRow
from dpo_core.data.unpack import BadPackage, Lines, open_lines
from dpo_core.spec import Method

MAX_LINE_BYTES = 8 * 1024 * 1024
"""A longer line is refused unread, so that memory stays bounded."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_rows(path: Path, method: Method) -> Iterator[Pair | Example | RowProblem | FileProblem]:
    """Yields a Pair (`dpo`) or an Example (`supervised`) for each good row, a RowProblem for each bad one.

    UTF-8, one JSON object a line; gzip, a byte order mark, CRLF and blank lines are accepted. A FileProblem
    comes last: the file has no row, or is gzip and can't be unpacked to its end.

    Raises:
        OSError: the file can't be opened or read.
    """
    number, empty = 0, True
    with open_lines(path) as file:
        try:
            for number, raw in _lines(file):
                empty = False
                yield _record(raw, method, number)
        except BadPackage as bad:
            yield FileProblem(number + 1, bad.code, bad.message)
            return
    if empty:
        yield FileProblem(1, "empty_file", "The file has no rows. Write one JSON object per line.")


def _record(raw: bytes | None, method: Method, number: int) -> Pair | Example | RowProblem:
    try:
        return parse_row(_decode(raw, number), method, number)
    except BadRow as bad:
        return RowProblem(number, bad.code, bad.field, bad.message)


def _lines(file: Lines) -> Iterator[tuple[int, bytes | None]]:
    """Lines that aren't blank, without their ends, with 1-based numbers; None: a line longer than the limit."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if len(line) > MAX_LINE_BYTES:
            _skip_rest_of_line(file, line)
            yield number, None
        elif line.strip():
            # An error in the line counts its columns, and an end of line would begin another one.
            yield number, line.rstrip(b"\r\n")


def _skip_rest_of_line(file: Lines, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE_BYTES)


def _decode(raw: bytes | None, number: int) -> dict[str, object]:
    if raw is None:
        raise BadRow(
            "line_too_long", None, f"The line is longer than {MAX_LINE_BYTES // 2**20} MiB. Shorten or remove the row."
        )
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
