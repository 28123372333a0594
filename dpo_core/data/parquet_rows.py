"""The rows of a Parquet file as JSON texts. Their "lines" are the numbers of the rows, from 1.

Parquet's reader is a large C++ program that takes the file's word for sizes, and what a stranger sent may lie. So it
runs in a process of its own (`parquet_program.py`), with a bound on memory and on time: what it takes there, and even a
crash, is one bad file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dpo_core.data import parquet_program
from dpo_core.data.records import RowProblem
from dpo_core.data.unpack import BadFile, Meter
from dpo_core.process import PARENT_PID

MAGIC = b"PAR1"
ENCRYPTED_MAGIC = b"PARE"


def parquet_rows(path: Path, limit: int) -> Iterator[tuple[int, bytes | RowProblem]]:
    """Each row's number and JSON text of at most `limit` bytes, or what is wrong with it.

    Raises:
        BadFile: the file is damaged or too large.
        OSError: the reader can't be started.
    """
    meter = Meter("Parquet file", path.stat().st_size)
    program = [sys.executable, "-m", "dpo_core.data.parquet_program", str(path), str(limit)]
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", PARENT_PID: str(os.getpid())}
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None  # noqa: S101 (it is a pipe)
            yield from _rows(process.stdout, meter)
            if process.wait() != 0:
                raise BadFile("damaged_parquet", _ended(process.returncode))
        finally:
            process.kill()


def _rows(output: IO[bytes], meter: Meter) -> Iterator[tuple[int, bytes | RowProblem]]:
    for number, line in enumerate(output, 1):
        meter.add(len(line))
        kind, text = line[:1], line[1:-1]
        if kind == parquet_program.ROW:
            yield number, text
        elif kind == parquet_program.BAD_ROW:
            code, field, message = json.loads(text)
            yield number, RowProblem(number, code, field, message)
        else:
            code, message = json.loads(text)
            raise BadFile(code, message, number)


def _ended(returncode: int) -> str:
    how = f"by signal {-returncode}" if returncode < 0 else f"with exit code {returncode}"
    return f"The Parquet file is damaged: reading it ended {how}. Write it again, or send it as JSONL."
