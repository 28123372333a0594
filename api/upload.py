"""A multipart upload parsed straight into storage: the memory in use doesn't depend on the file's size."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO

from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from control_plane.errors import InvalidRequest, TooLarge
from control_plane.files import require_purpose

WRITE_BYTES = 1024**2
"""File bytes gathered for one write."""
FIELD_BYTES = 16 * 1024
"""All fields beside the file, and each header, together."""
FILENAME_CHARACTERS = 255


@dataclass(frozen=True)
class Upload:
    filename: str
    purpose: str
    bytes: int
    sha256: str


async def receive_upload(
    body: AsyncIterator[bytes], content_type: str | None, sink: AbstractContextManager[BinaryIO], *, max_bytes: int
) -> Upload:
    """Writes the form's `file` to `sink` and returns its facts; every error leaves nothing in storage.

    The parts may come in any order. Raises InvalidRequest for a form that is cut off, incomplete or
    not understood, TooLarge for a file above `max_bytes`, and ClientDisconnect where the client left.
    """
    form = _Form(max_bytes)
    parser = _parser(form, content_type)
    digest = hashlib.sha256()
    async with contextmanager_in_threadpool(sink) as file:

        def write(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        async for chunk in body:
            try:
                parser.write(chunk)
            except FormParserError as error:
                raise InvalidRequest(f"The upload is not a valid multipart form: {error}.") from None
            if len(form.gathered) >= WRITE_BYTES:
                await run_in_threadpool(write, form.take())
        await run_in_threadpool(write, form.take())
        form.require_complete()
    return Upload(form.filename or "file", form.fields["purpose"], form.file_bytes, digest.hexdigest())


def _parser(form: _Form, content_type: str | None) -> MultipartParser:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequest(
            "An upload is a form: send multipart/form-data with a boundary, and in it `purpose` and `file`.",
            param="file",
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

    def __init__(self, max_bytes: int) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.file_bytes = 0
        self.gathered = bytearray()
        self._max_bytes = max_bytes
        self._complete = False
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._field: str = ""
        self._value = bytearray()
        self._field_bytes = 0

    def take(self) -> bytes:
        taken = bytes(self.gathered)
        self.gathered.clear()
        return taken

    def require_complete(self) -> None:
        """Raises InvalidRequest unless the form ended and held a purpose and a file with something in it."""
        if not self._complete:
            raise InvalidRequest("The upload was cut off before its end, so no file was made. Send it again.")
        if self.filename is None:
            raise InvalidRequest("The form has no `file` part; with curl: -F file=@pairs.jsonl.", param="file")
        if "purpose" not in self.fields:
            raise InvalidRequest("The form has no `purpose`; with curl: -F purpose=fine-tune.", param="purpose")
        if self.file_bytes == 0:
            raise InvalidRequest(f"The file {self.filename!r} is empty; send one row a line.", param="file")

    # -- the parser's callbacks ------------------------------------------------------------------

    def on_part_begin(self) -> None:
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
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        _require_known(self._field)
        if self._field != "file":
            return
        if b"filename" not in options:
            raise InvalidRequest(
                "`file` came as a text field; send it as a file (with curl: -F file=@pairs.jsonl).", param="file"
            )
        if self.filename is not None:
            raise InvalidRequest("The form has two `file` parts; send one file an upload.", param="file")
        self.filename = _clean_filename(options[b"filename"])

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == "file":
            self.file_bytes += end - start
            if self.file_bytes > self._max_bytes:
                raise too_large(self._max_bytes)
            self.gathered += memoryview(data)[start:end]
            return
        self._field_bytes += end - start
        if self._field_bytes > FIELD_BYTES:
            raise InvalidRequest(f"The field `{self._field}` is too long for an upload.", param=self._field)
        self._value += data[start:end]

    def on_part_end(self) -> None:
        if self._field == "file":
            return
        value = self._value.decode("utf-8", "replace")
        if self._field == "purpose":
            require_purpose(value)
        self.fields[self._field] = value

    def on_end(self) -> None:
        self._complete = True


def too_large(max_bytes: int) -> TooLarge:
    return TooLarge(
        f"The file is larger than the {max_bytes:,} bytes that this server takes (DPO_MAX_FILE_BYTES). "
        "Split it, or ask the operator to raise the limit.",
        param="file",
        code="file_too_large",
    )


def _require_known(field: str) -> None:
    if field.startswith("expires_after"):
        raise InvalidRequest(
            "`expires_after` is not supported yet: leave it out, and delete the file when you are done with it.",
            param="expires_after",
        )
    if field not in ("file", "purpose"):
        raise InvalidRequest(f"The form has an unknown field {field!r}; it takes `purpose` and `file`.", param=field)


def _clean_filename(given: bytes) -> str:
    """The last part of the client's path, printable. It is shown back, and never becomes a path here."""
    name = given.decode("utf-8", "replace").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(letter for letter in name if letter.isprintable())[:FILENAME_CHARACTERS] or "file"
