"""Writes the rows of a Parquet file to standard output.

`python -m dpo_core.data.parquet_program FILE ROW_BYTES MEMORY_BYTES CPU_SECONDS`, with bounds on a row's text and on
what reading takes. A line begins with what it is: `ROW` and the row's JSON text, `BAD_ROW` and what is wrong with it,
or, as the last one, `BAD_FILE`. Row groups are read column by column in batches, so memory doesn't grow with the file.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dpo_core.data.fields import printable, shown

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROW, BAD_ROW, BAD_FILE = b"+", b"?", b"!"

MAX_GROUP_BYTES = 8 * 2**30
"""What a row group may say that it unpacks to."""

BATCH_ROWS = 32
BUFFER_BYTES = 2**20

GRACE_SECONDS = 5
"""Between the signal that says that the time is over, and the one that says nothing."""


def main(path: Path, limit: int, memory: int, seconds: int, output: BinaryIO) -> None:
    """Writes every row; what is wrong with the file comes last. MemoryError where reading takes too much."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    _bound(memory, seconds)
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
            too_large = _too_large(file.metadata)
            if too_large is not None:
                _say(output, BAD_FILE, "parquet_too_large", too_large)
                return
            for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                for line in _lines(batch, limit):
                    output.write(line)
    except pa.ArrowMemoryError as error:
        raise MemoryError from error
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        reason = printable(" ".join(str(error).split())[:200])
        message = f"The Parquet file is damaged: {reason}. Write or upload it again, or send it as JSONL."
        _say(output, BAD_FILE, "damaged_parquet", message)


def _bound(memory: int, seconds: int) -> None:
    """The kernel ends what takes more; a damaged file may also make the reader work for ever."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)
    _lower(resource.RLIMIT_CPU, seconds, seconds + GRACE_SECONDS)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(limit: int, soft: int, hard: int | None = None) -> None:
    """Sets a limit, unless whoever started us has set a lower one."""
    _, there = resource.getrlimit(limit)
    wanted = soft, soft if hard is None else hard
    resource.setrlimit(limit, wanted if there == resource.RLIM_INFINITY else (min(soft, there), min(wanted[1], there)))


def _too_large(metadata: pq.FileMetaData) -> str | None:
    for number in range(metadata.num_row_groups):
        size = metadata.row_group(number).total_byte_size
        if not 0 <= size <= MAX_GROUP_BYTES:
            return (
                f"Row group {number + 1} says that it unpacks to {size:,} bytes; at most {MAX_GROUP_BYTES:,} are read. "
                "Write smaller row groups."
            )
    return None


def _lines(batch: pa.RecordBatch, limit: int) -> Iterator[bytes]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            yield _single(batch.slice(index, 1), limit)
        return
    for row in rows:
        yield _line(row, limit)


def _single(batch: pa.RecordBatch, limit: int) -> bytes:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.to_pylist()
        except UnicodeDecodeError:
            message = f"The column {shown(name)} holds bytes that are not UTF-8. Correct or remove the row."
            return BAD_ROW + json.dumps(["not_utf8", name, message]).encode() + b"\n"
    return _line(batch.to_pylist()[0], limit)


def _line(row: dict[str, object], limit: int) -> bytes:
    text = json.dumps(_plain(row), ensure_ascii=False).encode()
    if len(text) > limit:
        message = f"The row is longer than {limit // 2**20} MiB. Shorten or remove it."
        return BAD_ROW + json.dumps(["line_too_long", None, message]).encode() + b"\n"
    return ROW + text + b"\n"


def _plain(value: object) -> object:
    """The value as JSON has it. A row and a struct have all fields that any has; those that are null weren't there."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _text(value) if isinstance(value, bytes) else str(value)


def _text(value: bytes) -> object:
    """Some writers leave out that a column is text; what is none, an image perhaps, stays recognisable."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"bytes": len(value)}


def _say(output: BinaryIO, kind: bytes, code: str, message: str) -> None:
    output.write(kind + json.dumps([code, message]).encode() + b"\n")


if __name__ == "__main__":
    from dpo_core.process import arm_parent_death

    arm_parent_death()
    with open(sys.stdout.fileno(), "wb", closefd=False) as stream:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), stream)
