"""Opens a data file as a stream of bytes: plain, gzip (RFC 1952) or zstd (RFC 8878), by its first bytes.

A packed file may unpack to `unpacked_limit` bytes and no more, so that a small file can't keep a worker
busy for days. What is unpacked is streamed, never held.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, cast

import zstandard

from dpo_core.data.records import FileProblemCode

Packing = Literal["gzip", "zstd"]

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

MAX_UNPACKED_BYTES = 32 * 2**30
"""No packed file may unpack to more."""

MAX_RATIO = 100
"""Nor to more than so many times its own size; JSON text packs 3 to 10 times."""

FREE_BYTES = 64 * 2**20
"""So much any file may unpack to: it costs nothing, and a few rows repeated many times do pack better."""

BUFFER_BYTES = 64 * 1024
ZSTD_STEP_BYTES = 512
"""So much of a zstd file is unpacked at once: a block of 4 bytes may unpack to 128 KiB, so this to 16 MiB."""

ZSTD_WINDOW_BYTES = 128 * 2**20
"""What `zstd --long` needs; a frame that asks for more memory is refused."""


class BadFile(Exception):
    """The file can't be read on; becomes a FileProblem. `line` is where, if the one who raises it knows."""

    def __init__(self, code: FileProblemCode, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.line = line


class Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


@contextmanager
def open_stream(path: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, unpacked where it is packed; reading them raises BadFile where they end too early.

    Raises:
        OSError: the file can't be opened or read.
    """
    with _buffered(io.FileIO(path)) as file:
        # peek and not seek, because a file may be a pipe
        packing = _packing(file.peek(4))
        packed_bytes = os.fstat(file.fileno()).st_size
        if packing == "gzip":
            with gzip.open(file) as unpacked:
                yield _buffered(_Unpacked("gzip", cast(Source, unpacked), packed_bytes))
        elif packing == "zstd":
            yield _buffered(_Unpacked("zstd", _ZstdFrames(file), packed_bytes))
        else:
            yield file


def packed_with(path: Path) -> Packing | None:
    """How the file is packed, if it is. Raises OSError."""
    with open(path, "rb") as file:
        return _packing(file.read(4))


def _packing(head: bytes) -> Packing | None:
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    return "zstd" if head.startswith(ZSTD_MAGIC) else None


def _buffered(raw: io.RawIOBase) -> io.BufferedReader:
    return io.BufferedReader(raw, BUFFER_BYTES)


class _Unpacked(io.RawIOBase):
    """Counts what comes out of a packed file, and says in words what is wrong with it."""

    def __init__(self, kind: Packing, source: Source, packed_bytes: int) -> None:
        self._kind = kind
        self._source = source
        self._meter = Meter(f"{kind} file", packed_bytes)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        try:
            data = self._source.read(len(buffer))
        except EOFError:
            message = f"The {self._kind} file is cut off: its end is missing. Copy or upload it again."
            raise BadFile("truncated_gzip" if self._kind == "gzip" else "truncated_zstd", message) from None
        except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            message = f"The {self._kind} file is damaged: {error}. Pack it again, or send it unpacked."
            raise BadFile("damaged_gzip" if self._kind == "gzip" else "damaged_zstd", message) from None
        self._meter.add(len(data))
        buffer[: len(data)] = data
        return len(data)


class _ZstdFrames:
    """Frames one after the other, as `cat a.zst b.zst` makes them."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
        self._frame = self._decompressor.decompressobj()
        self._begun = False
        self._rest = b""
        """What was read behind the end of a frame."""

        self._ready = io.BytesIO()

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end. EOFError where a frame has none."""
        while not (data := self._ready.read(size)):
            if self._frame.eof:
                self._rest, self._begun = self._frame.unused_data, False
                self._frame = self._decompressor.decompressobj()
            packed = self._rest or self._packed.read(ZSTD_STEP_BYTES)
            self._rest = b""
            if not packed:
                if self._begun:
                    raise EOFError
                return b""
            self._begun = True
            self._ready = io.BytesIO(self._frame.decompress(packed))
        return data


class Meter:
    """Counts what a packed file unpacks to."""

    def __init__(self, what: str, packed_bytes: int) -> None:
        self._what = what
        self._packed_bytes = packed_bytes
        self._limit = unpacked_limit(packed_bytes)
        self._count = 0

    def add(self, count: int) -> None:
        """Raises BadFile once it is too much."""
        self._count += count
        if self._count > self._limit:
            message = (
                f"The {self._what} of {self._packed_bytes:,} bytes unpacks to more than {self._limit:,} bytes: the "
                f"limit is {MAX_RATIO} times its size, but at least {FREE_BYTES:,} and at most {MAX_UNPACKED_BYTES:,} "
                "bytes. Split the file, or send it unpacked."
            )
            raise BadFile("unpacks_too_large", message)


def unpacked_limit(packed_bytes: int) -> int:
    """Bytes that a packed file of `packed_bytes` may unpack to."""
    return min(max(FREE_BYTES, MAX_RATIO * packed_bytes), MAX_UNPACKED_BYTES)
