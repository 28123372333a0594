"""The rows of a Parquet file as JSON texts. Their "lines" are the numbers of the rows, from 1.

Parquet's reader is a large C++ program that takes the file's word for sizes, and what a stranger sent may lie. So it
runs in a process of its own (`parquet_program.py`), with a bound on memory and on time: what it takes there, and even a
crash, is one bad file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from dpo_core.data import parquet_program
from dpo_core.data.records import RowProblem
from dpo_core.data.unpack import BadFile, Meter
from dpo_core.errors import reader_killed
from dpo_core.process import PARENT_PID

MAGIC = b"PAR1"
ENCRYPTED_MAGIC = b"PARE"


MEMORY_BYTES = 3 * 2**29
"""What reading may take beside the program itself."""

CPU_SECONDS, CPU_SECONDS_PER_MIB = 60, 20
SAID_BYTES = 4096
"""So much is looked at of what the program said at its end."""


def parquet_rows(path: Path, limit: int) -> Iterator[tuple[int, bytes | RowProblem]]:
    """Each row's number and JSON text of at most `limit` bytes, or what is wrong with it.

    Raises:
        BadFile: the file is damaged, or takes more memory or time than it may.
        RunError: kind `resource`; the reader was killed.
        OSError: the reader can't be started.
    """
    size = path.stat().st_size
    seconds = CPU_SECONDS + CPU_SECONDS_PER_MIB * (size // 2**20)
    bounds = map(str, (limit, MEMORY_BYTES, seconds))
    program = [sys.executable, "-m", "dpo_core.data.parquet_program", str(path), *bounds]
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", PARENT_PID: str(os.getpid())}
    with (
        TemporaryFile() as said,
        subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        try:
            assert process.stdout is not None  # noqa: S101 (it is a pipe)
            yield from _rows(process.stdout, Meter("Parquet file", size))
            if process.wait() != 0:
                raise _ended(process.returncode, _last_of(said), seconds)
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


def _last_of(said: IO[bytes]) -> bytes:
    said.seek(max(0, said.seek(0, os.SEEK_END) - SAID_BYTES))
    return said.read()


def _ended(returncode: int, said: bytes, seconds: int) -> Exception:
    """Why the program did not end by itself."""
    if returncode == -signal.SIGKILL:  # not ours: its bounds have other ways of ending it
        return reader_killed()
    if returncode == -signal.SIGXCPU:
        message = (
            f"Reading the Parquet file takes more than {seconds:,} s of processor time ({CPU_SECONDS}, and "
            f"{CPU_SECONDS_PER_MIB} more for each MiB of the file). Write it again, split it, or send it as JSONL."
        )
        return BadFile("parquet_too_slow", message)
    # MemoryError is Python's word for it, bad_alloc that of C++
    if b"MemoryError" in said or b"bad_alloc" in said:
        message = (
            f"Reading the Parquet file takes more than {MEMORY_BYTES // 2**20:,} MiB of memory. Write smaller row "
            "groups, or send it as JSONL."
        )
        return BadFile("parquet_too_large", message)
    how = f"by signal {-returncode}" if returncode < 0 else f"with exit code {returncode}"
    message = f"The Parquet file is damaged: reading it ended {how}. Write it again, or send it as JSONL."
    return BadFile("damaged_parquet", message)
