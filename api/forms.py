"""A multipart form with one file, parsed straight into storage: the memory in use doesn't depend on the file's size."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Self

import anyio
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers

from control_plane.errors import InvalidRequest, ServiceError, Stalled, TooLarge
from control_plane.filenames import clean_filename
from control_plane.quotas import Room

WRITE_BYTES = 4 * 1024**2
"""File bytes gathered for one write."""
FIELD_BYTES = 16 * 1024
"""All fields beside the file together."""
MAX_PARTS = 16
"""Parts of a form; the parser bounds the headers of each."""


@dataclass(frozen=True)
class FormShape:
    """What a form must hold."""

    file: str
    """The field whose content goes to storage."""
    example: str
    """How curl sends it."""
    if_too_large: str
    """What to do about a file above the limit."""
    fields: tuple[str, ...] = ()
    """Text fields that may stand beside it."""
    check: Callable[[str, str], None] = lambda _name, _value: None
    """Called with each text field as soon as it is there; raises for one that can't be."""


@dataclass(frozen=True)
class Most:
    """The bytes that a form's file may have, and what is said of more."""

    bytes: int
    refusal: ServiceError

    def require(self, headers: Headers) -> None:
        """Raises the refusal where the whole form is announced as longer than such a file and all else in it."""
        self.require_whole(int(headers.get("content-length", 0)))

    def require_whole(self, form_bytes: int) -> None:
        """As `require`, of a form that has so many bytes: before its first part and behind its last one may be some."""
        if form_bytes > self.bytes + 4 * FIELD_BYTES:
            raise self.refusal


@dataclass(frozen=True)
class Received:
    """A form whose file is in storage."""

    filename: str
    fields: dict[str, str]
    bytes: int
    sha256: str


async def receive_form(
    body: AsyncIterator[bytes],
    content_type: str | None,
    sink: AbstractContextManager[BinaryIO],
    shape: FormShape,
    *,
    most: Most,
    idle_seconds: float,
) -> Received:
    """Writes the form's file to `sink` and returns its facts; every error leaves nothing in storage.

    The parts may come in any order. Raises InvalidRequest for a form that is cut off, incomplete or
    not understood, `most.refusal` for a file above that, Stalled where nothing came for `idle_seconds`,
    and ClientDisconnect where the client left.
    """
    form = _Form(shape, most)
    parser = _parser(form, content_type)
    digest = hashlib.sha256()
    async with contextmanager_in_threadpool(sink) as file:

        def write(data: bytearray) -> None:
            digest.update(data)
            file.write(data)

        async with _OneBehind(write) as writer:
            received = 0
            async for chunk in never_idle(body, idle_seconds):
                received += len(chunk)
                most.require_whole(received)
                try:
                    parser.write(chunk)
                except FormParserError as error:
                    raise InvalidRequest(f"The upload is not a valid multipart form: {error}.") from None
                if len(form.gathered) >= WRITE_BYTES:
                    await writer.write(form.take())
            await writer.write(form.take())
        form.require_complete()
    return Received(form.filename or "file", form.fields, form.file_bytes, digest.hexdigest())


class _OneBehind:
    """Writes on a thread while more is received; two pieces are never written at once."""

    def __init__(self, write: Callable[[bytearray], None]) -> None:
        self._write = write
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def write(self, data: bytearray) -> None:
        """Returns when the piece before it is written. Raises what writing that raised."""
        if self._task is not None:
            await self._task
        self._task = asyncio.create_task(run_in_threadpool(self._write, data))

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the last piece, whatever happened: nobody may close the file under it."""
        if self._task is None:
            return
        with anyio.CancelScope(shield=True):
            await asyncio.wait([self._task])
        failure = self._task.exception()
        if failure is not None and kind is None:
            raise failure


async def never_idle(body: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """The same chunks. Raises Stalled when none comes for `seconds`."""
    while True:
        try:
            with anyio.fail_after(seconds):
                chunk = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Stalled(
                f"Nothing of the request's body came for {seconds:g} s, so nothing of it was kept. Send it again."
            ) from None
        yield chunk


def _parser(form: _Form, content_type: str | None) -> MultipartParser:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequest(
            f"This takes a form: send multipart/form-data with a boundary, and in it {_known(form.shape)}.",
            param=form.shape.file,
        )
    try:
        return MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": form.on_part_begin,
                "on_header_field": form.on_header_field,
                "on_header_value": form.on_header_value,
                "on_header_end": form.on_header_end,
                "on_headers_finished": form.on_headers_finished,
                "on_part_data": form.on_part_data,
                "on_part_end": form.on_part_end,
                "on_end": form.on_end,
            },
        )
    except FormParserError as error:
        raise InvalidRequest(f"The upload is not a valid multipart form: {error}.") from None


class _Form:
    """What the parser has seen: small fields whole, and the file's bytes until somebody takes them."""

    def __init__(self, shape: FormShape, most: Most) -> None:
        self.shape = shape
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.file_bytes = 0
        self.gathered = bytearray()
        self._most = most
        self._complete = False
        self._parts = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._field: str = ""
        self._value = bytearray()
        self._field_bytes = 0

    def take(self) -> bytearray:
        taken, self.gathered = self.gathered, bytearray()
        return taken

    def require_complete(self) -> None:
        """Raises InvalidRequest unless the form ended and held a file with something in it."""
        name = self.shape.file
        if not self._complete:
            raise InvalidRequest("The upload was cut off before its end, so nothing of it was kept. Send it again.")
        if self.filename is None:
            raise InvalidRequest(f"The form has no `{name}` part; with curl: -F {self.shape.example}.", param=name)
        if self.file_bytes == 0:
            raise InvalidRequest(f"`{name}` ({self.filename!r}) is empty; there is nothing to store.", param=name)

    # -- the parser's callbacks ------------------------------------------------------------------

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts; it takes {_known(self.shape)}.")
        self._disposition = b""
        self._value.clear()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        self._field = field = options.get(b"name", b"").decode("utf-8", "replace")
        if field in self.fields or (field == self.shape.file and self.filename is not None):
            raise InvalidRequest(f"The form has two `{field}` parts; send one of each.", param=field)
        if field in self.shape.fields:
            return
        if field != self.shape.file:
            raise InvalidRequest(
                f"The form has an unknown field {field[:80]!r}; it takes {_known(self.shape)}.", param=field[:80]
            )
        if b"filename" not in options:
            raise InvalidRequest(
                f"`{field}` came as a text field; send it as a file (with curl: -F {self.shape.example}).", param=field
            )
        self.filename = clean_filename(options[b"filename"].decode("utf-8", "replace"))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == self.shape.file:
            self.file_bytes += end - start
            if self.file_bytes > self._most.bytes:
                raise self._most.refusal
            self.gathered += memoryview(data)[start:end]
            return
        self._field_bytes += end - start
        if self._field_bytes > FIELD_BYTES:
            raise InvalidRequest(f"The field `{self._field}` is too long for an upload.", param=self._field)
        self._value += data[start:end]

    def on_part_end(self) -> None:
        if self._field == self.shape.file:
            return
        value = self._value.decode("utf-8", "replace")
        self.shape.check(self._field, value)
        self.fields[self._field] = value

    def on_end(self) -> None:
        self._complete = True


def most_of(shape: FormShape, max_bytes: int, room: Room | None) -> Most:
    """The smaller of the limit of one file and the project's room."""
    if room is not None and room.left < max_bytes:
        return Most(room.left, room.refusal())
    message = f"`{shape.file}` is larger than {max_bytes:,} bytes. {shape.if_too_large}"
    return Most(max_bytes, TooLarge(message, param=shape.file, code="file_too_large"))


def _known(shape: FormShape) -> str:
    """The form's fields in words."""
    return " and ".join(f"`{name}`" for name in (*shape.fields, shape.file))
