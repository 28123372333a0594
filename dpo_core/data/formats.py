"""Reads a data file row by row: JSONL, a JSON array, CSV or Parquet; the first three plain, gzip or zstd.

What a file is, its first bytes tell, never its name. Nothing in a file can stop the reader: every row becomes a
record or a RowProblem with its line, and what is wrong with the file as a whole becomes a FileProblem.
The shapes that a row may have are in `dpo_core.data.rows`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Literal

from dpo_core.data import json_array, parquet_rows
from dpo_core.data.columns import rename
from dpo_core.data.csv_rows import Cells, csv_rows, delimiter_of, unfold
from dpo_core.data.fields import BadRow, Row
from dpo_core.data.json_values import RepeatedField, decode
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import Example, FileProblem, Pair, RowProblem
from dpo_core.data.rows import parse_row, shape_of
from dpo_core.data.unpack import BUFFER_BYTES, GZIP_MAGIC, ZSTD_MAGIC, BadFile, Packing, open_stream, packed_with

MAX_ROW_BYTES = 8 * 1024 * 1024
"""A longer row is refused unread, so that memory stays bounded."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

OTHER_FORMATS = {
    b"PK\x03\x04": "a ZIP archive (an Excel file is one, too)",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "a SQLite database",
    b"%PDF": "a PDF",
    parquet_rows.ENCRYPTED_MAGIC: "an encrypted Parquet file",
    parquet_rows.MAGIC: "a Parquet file that was packed once more",
    **{bytes((0x80, version)): "a Python pickle: a program, and never opened here" for version in range(2, 6)},
    GZIP_MAGIC: "packed twice",
    ZSTD_MAGIC: "packed twice",
}
"""What else people send, by the first bytes."""


KindName = Literal["JSONL", "JSON array", "CSV", "Parquet"]


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file is, by its content."""

    name: KindName
    packed: Packing | None

    def in_words(self) -> str:
        """Such as `JSONL` or `CSV, gzip`."""
        return self.name if self.packed is None else f"{self.name}, {self.packed}"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row that is cut out of its file, and not looked into yet; picklable."""

    line: int
    row: int
    """1-based, as in every record; rows of one line differ in it."""

    content: bytes | Cells | RowProblem
    """JSON text, or the cells of a CSV row; or what is wrong with a row that can't be cut out."""


def raw_rows(path: Path) -> Iterator[RawRow | FileProblem]:
    """Cuts a file into rows, cheaply and in constant memory.

    `line` is where a row begins, in a Parquet file the number of the row. A FileProblem comes last: the file has no
    row, is of no known kind, or can't be read to its end.

    Raises:
        OSError: the file can't be opened or read.
    """
    line = row = 0
    try:
        for row, (line, content) in enumerate(_contents(path), 1):
            yield RawRow(line, row, _too_long(line) if content is None else content)
    except BadFile as bad:
        yield FileProblem(bad.line or line + 1, bad.code, bad.message)
        return
    if not row:
        yield FileProblem(1, "empty_file", "The file has no rows. Write one JSON object per line.")


def records(raw: RawRow, options: ReadOptions) -> list[Pair | Example | RowProblem]:
    """What a row says: Pairs (`dpo`), Examples (`supervised`), or what is wrong with it."""
    return [replace(record, row=raw.row) for record in _records(raw, options)]


def _records(raw: RawRow, options: ReadOptions) -> Sequence[Pair | Example | RowProblem]:
    if isinstance(raw.content, RowProblem):
        return [raw.content]
    try:
        if isinstance(raw.content, dict):
            row: Row = unfold(rename(raw.content, options.columns))
        else:
            row = rename(_decode(raw.content, raw.line), options.columns)
        parsed, shape = parse_row(row, options, raw.line), shape_of(row)
        return [
            _in_the_files_words(it, options) if isinstance(it, RowProblem) else replace(it, shape=shape)
            for it in parsed
        ]
    except BadRow as bad:
        return [_in_the_files_words(RowProblem(raw.line, bad.code, bad.field, bad.message), options)]
    except RecursionError:
        message = "The JSON is nested too deeply. Flatten or remove the row."
        return [RowProblem(raw.line, "not_json", None, message)]


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


def kind_of_file(path: Path) -> FileKind | None:
    """What the file is; None where it can't be read at all, which `raw_rows` tells the reason of.

    Raises:
        OSError: the file can't be opened or read.
    """
    try:
        with open_stream(path) as file:
            name, _ = _kind(file.peek(), plain=isinstance(file.raw, FileIO))
            return FileKind(name, packed_with(path))
    except BadFile:
        return None


def _kind(head: bytes, *, plain: bool) -> tuple[KindName, str]:
    """By the first bytes of the unpacked file; of CSV also what divides its cells. Raises BadFile."""
    if head.startswith(parquet_rows.MAGIC) and plain:
        return "Parquet", ""
    _refuse_other_formats(head)
    text = head.removeprefix(BYTE_ORDER_MARK)
    if text.lstrip()[:1] == b"[":
        return "JSON array", ""
    if text.lstrip()[:1] != b"{" and (delimiter := delimiter_of(text)) is not None:
        return "CSV", delimiter
    return "JSONL", ""


def _contents(path: Path) -> Iterator[tuple[int, bytes | Cells | RowProblem | None]]:
    """The rows that a file's kind makes of it; None for one that is too long."""
    with open_stream(path) as file:
        head = file.peek()
        kind, delimiter = _kind(head, plain=isinstance(file.raw, FileIO))
        if kind == "Parquet":
            yield from parquet_rows.parquet_rows(path, MAX_ROW_BYTES)
            return
        if head.startswith(BYTE_ORDER_MARK):
            file.read(len(BYTE_ORDER_MARK))
        if kind == "JSON array":
            yield from json_array.elements(file, MAX_ROW_BYTES)
        elif kind == "CSV":
            yield from csv_rows(file, delimiter, MAX_ROW_BYTES)
        else:
            yield from _json_lines(file)


def _refuse_other_formats(head: bytes) -> None:
    for magic, what in OTHER_FORMATS.items():
        if head.startswith(magic):
            message = f"The file is {what}. Send JSONL, a JSON array or CSV (plain, gzip or zstd), or Parquet."
            raise BadFile("not_data", message, 1)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:2]:
        raise BadFile("not_utf8", "The file is UTF-16 text, or none at all. Save it as UTF-8.", 1)


def _json_lines(file: BufferedReader) -> Iterator[tuple[int, bytes | None]]:
    """Lines that aren't blank, without their ends; None: a line longer than the limit."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(BUFFER_BYTES)
            yield number, None
        elif line.strip():
            # An error in the line counts its columns, and an end of line would begin another one.
            yield number, line.rstrip(b"\r\n")


def _too_long(line: int) -> RowProblem:
    message = f"The row is longer than {MAX_ROW_BYTES // 2**20} MiB. Shorten or remove it."
    return RowProblem(line, "line_too_long", None, message)


def _decode(raw: bytes, number: int) -> dict[str, object]:
    try:
        row = decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        message = f"Byte {error.start + 1} of the row is not UTF-8. Save the file as UTF-8 text."
        raise BadRow("not_utf8", None, message) from None
    except json.JSONDecodeError as error:
        raise BadRow("not_json", None, _json_hint(number, error)) from None
    except RepeatedField as error:
        message = f"Not clear: {error}. Keep the one that is meant."
        raise BadRow("duplicate_field", error.name, message) from None
    except ValueError as error:  # NaN, Infinity, or an integer with thousands of digits
        raise BadRow("not_json", None, f"Not valid JSON: {error}. Correct the value.") from None
    if not isinstance(row, dict):
        kind = "a JSON array" if isinstance(row, list) else "a single JSON value"
        raise BadRow("not_an_object", None, f"The row is {kind}, not an object. Write one object {{...}} per row.")
    return row


def _json_hint(number: int, error: json.JSONDecodeError) -> str:
    """What is wrong, and where: a row of a JSON array may have several lines."""
    where = f"column {error.colno}" if error.lineno == 1 else f"line {number + error.lineno - 1}, column {error.colno}"
    if error.msg.startswith("Unterminated string"):
        what = f"the text that begins at {where} has no end; the row is cut off, or a quote is missing"
    elif error.pos >= len(error.doc.rstrip()):
        what = f"the row is cut off after column {len(error.doc)}"
        if error.doc.strip() in ("{", "}"):
            return f"Not valid JSON: {what}. Write each object on one line, or all of them into one array [...]."
    else:
        what = f"{error.msg.removesuffix(' at')} at {where}"
    return f"Not valid JSON: {what}. Write one complete JSON object per line."


def _in_the_files_words(problem: RowProblem, options: ReadOptions) -> RowProblem:
    """With the names of the file's own columns, where `columns` names them."""
    for name, column in options.columns.items():
        ours = rf"\b{re.escape(name)}(?=[.\[]|\Z)"
        if problem.field is not None and re.match(ours, problem.field):
            field = column + problem.field[len(name) :]
            message = re.sub(rf"`{re.escape(name)}(?=[`.\[])", f"`{column}".replace("\\", r"\\"), problem.message)
            return replace(problem, field=field, message=message)
    return problem
