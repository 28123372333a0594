"""Cuts a JSON array into its elements without holding or parsing it: only brackets, strings and commas are looked at.

An element that is no JSON is cut out like any other, and whoever parses it says what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BufferedReader

from dpo_core.data.unpack import BadFile

CHUNK_BYTES = 64 * 1024

# Possessive (*+), so that a match neither goes back nor remembers where it could. A string that the chunk doesn't hold
# to its end stops them before its quote.
TO_BRACKET = re.compile(rb'[^"\[\]{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\[\]{}]*+)*+', re.DOTALL)
TO_SEPARATOR = re.compile(rb'[^"\[\]{},]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\[\]{},]*+)*+', re.DOTALL)
STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)

QUOTE, COMMA, BACKSLASH, OPENING, CLOSING = b'"'[0], b","[0], b"\\"[0], b"[{", b"]}"


def elements(file: BufferedReader, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """The text of each element, and the line it begins in; None for one of more than `limit` bytes.

    `file` stands before the array's bracket, space aside.

    Raises:
        BadFile: the array has no end, or something follows it.
    """
    line = _enter(file)
    element = _Element(line, limit)
    depth, in_string, empty, rest = 1, False, True, b""
    while chunk := file.read1(CHUNK_BYTES):
        data = rest + chunk
        start = at = 0
        while True:
            if in_string:
                at = _end(STRING_REST, data, at)
                if at == len(data) or data[at] == BACKSLASH:
                    break
                in_string = False
                at += 1
            at = _end(TO_SEPARATOR if depth == 1 else TO_BRACKET, data, at)
            if at == len(data):
                break
            sign = data[at]
            at += 1
            if sign == QUOTE:
                in_string = True
            elif sign in OPENING:
                depth += 1
            elif depth > 1:
                depth -= 1
            elif sign == COMMA or sign == CLOSING[0]:
                element.add(data[start : at - 1])
                if sign == COMMA or not empty or not element.blank:
                    yield element.take()
                if sign != COMMA:
                    _leave(file, data[at:], element.line)
                    return
                start, empty = at, False
        element.add(data[start:at])
        rest = data[at:]
    first = element.first_line
    message = (
        f"The JSON array has no end. Its last row, which begins in line {first}, is cut off, or lacks a quote or a "
        "bracket. Correct that row, or copy the whole file again."
    )
    raise BadFile("truncated_array", message, first)


def _end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    match = pattern.match(data, at)
    return at if match is None else match.end()


class _Element:
    """The text of an element as it comes, in pieces; space before it is left out."""

    def __init__(self, line: int, limit: int) -> None:
        self.line = line
        """Where the text so far ends."""

        self.first_line = line
        """Where the element begins."""

        self.blank = True
        self._limit = limit
        self._text = bytearray()
        self._size = 0

    def add(self, piece: bytes) -> None:
        newlines = piece.count(b"\n")
        if self.blank:
            piece = piece.lstrip()
            self.first_line = self.line + newlines - piece.count(b"\n")
            self.blank = not piece
        self.line += newlines
        self._size += len(piece)
        if self._size <= self._limit:
            self._text += piece

    def take(self) -> tuple[int, bytes | None]:
        """The first line and the text; the next element begins."""
        taken = self.first_line, bytes(self._text.rstrip()) if self._size <= self._limit else None
        self._text.clear()
        self._size, self.blank, self.first_line = 0, True, self.line
        return taken


def _enter(file: BufferedReader) -> int:
    """Reads to behind the array's bracket; the line it stands in."""
    line = 1
    while (sign := file.read(1)) != b"[":
        line += sign == b"\n"
    return line


def _leave(file: BufferedReader, rest: bytes, line: int) -> None:
    """Raises BadFile if anything but space follows the array."""
    while not rest.strip():
        line += rest.count(b"\n")
        rest = file.read1(CHUNK_BYTES)
        if not rest:
            return
    line += rest[: len(rest) - len(rest.lstrip())].count(b"\n")
    message = (
        f"The JSON array ends, and more follows it in line {line}. Write all rows into one array, or one object per "
        "line."
    )
    raise BadFile("text_after_array", message, line)
