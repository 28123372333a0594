"""Opens a data file as lines of bytes: plain, or gzip (RFC 1952), which its first bytes tell, not its name.

A gzip file may unpack to `unpacked_limit` bytes and no more, so that a small file can't keep a worker
busy for days. What is unpacked is streamed, never held.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

GZIP_MAGIC = b"\x1f\x8b"

MAX_UNPACKED_BYTES = 32 * 2**30
"""No gzip file may unpack to more."""

MAX_RATIO = 100
"""Nor to more than so many times its own size; JSON text packs 3 to 10 times."""

FREE_BYTES = 64 * 2**20
"""So much any file may unpack to: it costs nothing, and a few rows repeated many times do pack better."""


class BadPackage(Exception):
    """A gzip file can't be read on. `code` is one of FileProblem's."""

    def __init__(self, code: Literal["damaged_gzip", "truncated_gzip", "unpacks_too_large"], message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Lines(Protocol):
    def readline(self, size: int, /) -> bytes:
        """At most `size` bytes of the next line with its newline; nothing at the end.

        Raises:
            BadPackage: the file is gzip and can't be read on.
        """
        ...


@contextmanager
def open_lines(path: Path) -> Iterator[Lines]:
    """The file's lines, unpacked where it is gzip.

    Raises:
        OSError: the file can't be opened or read.
    """
    with open(path, "rb") as file:
        # peek and not seek, because a file may be a pipe
        if file.peek(len(GZIP_MAGIC))[: len(GZIP_MAGIC)] != GZIP_MAGIC:
            yield file
            return
        with gzip.open(file) as unpacked:
            yield GzipLines(unpacked, os.fstat(file.fileno()).st_size)


class GzipLines:
    """Counts what comes out of a gzip file of `packed_bytes`, and says in words what is wrong with it."""

    def __init__(self, unpacked: Lines, packed_bytes: int) -> None:
        self._unpacked = unpacked
        self._packed_bytes = packed_bytes
        self._limit = unpacked_limit(packed_bytes)
        self._count = 0

    def readline(self, size: int, /) -> bytes:
        try:
            line = self._unpacked.readline(size)
        except EOFError:
            message = "The gzip file is cut off: its end is missing. Copy or upload it again."
            raise BadPackage("truncated_gzip", message) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            message = f"The gzip file is damaged: {error}. Pack it again, or send it unpacked."
            raise BadPackage("damaged_gzip", message) from None
        self._count += len(line)
        if self._count > self._limit:
            message = (
                f"The gzip file of {self._packed_bytes:,} bytes unpacks to more than {self._limit:,} bytes: the limit "
                f"is {MAX_RATIO} times its size, but at least {FREE_BYTES:,} and at most {MAX_UNPACKED_BYTES:,} bytes. "
                "Split the file, or send it unpacked."
            )
            raise BadPackage("unpacks_too_large", message)
        return line


def unpacked_limit(packed_bytes: int) -> int:
    """Bytes that a gzip file of `packed_bytes` may unpack to."""
    return min(max(FREE_BYTES, MAX_RATIO * packed_bytes), MAX_UNPACKED_BYTES)
