"""Stored bytes as answers: whole, in part (Range), or not again (If-None-Match); see RFC 9110, sections 13 and 14."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from functools import wraps
from http import HTTPStatus
from io import UnsupportedOperation
from types import MappingProxyType
from typing import Any, BinaryIO, ParamSpec

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.zero_copy import EXTENSION

CHUNK_BYTES = 1024**2
"""One read, where the operating system can't send the file by itself."""
STORED_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}},
    206: {"description": "The part that `Range` asked for", "content": {"application/octet-stream": {}}},
    304: {"description": "The client has it: `If-None-Match` names its ETag"},
    412: {"description": "`If-Match` names another ETag"},
    416: {"description": "The file has no such part"},
}
"""What a route that answers with a StoredFile says in the schema."""
Asked = ParamSpec("Asked")
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")


def again_if_gone(route: Callable[Asked, Response]) -> Callable[Asked, Response]:
    """For a route that looks something up and opens its bytes. Where they went in between, it runs once more: then it
    refuses what was deleted as it refuses all that is not there, and finds a name's new bytes where it has some."""

    @wraps(route)
    def answer(*args: Asked.args, **kwargs: Asked.kwargs) -> Response:
        try:
            return route(*args, **kwargs)
        except FileNotFoundError:
            return route(*args, **kwargs)

    return answer


class StoredFile(Response):
    """An open file of a known size. `etag`: of its content, without quotes; the answer closes the file."""

    def __init__(
        self,
        file: BinaryIO,
        *,
        size: int,
        etag: str,
        headers: Mapping[str, str] = MappingProxyType({}),
        media_type: str | None = None,
    ) -> None:
        self._file, self._size, self._etag = file, size, f'"{etag}"'
        self.media_type = media_type or "application/octet-stream"
        self.status_code = HTTPStatus.OK
        self.background = None
        self.init_headers({**headers, "ETag": self._etag, "Accept-Ranges": "bytes"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            status, start, count = self._part(scope["method"], Headers(scope=scope))
            self.headers["Content-Length"] = str(count)
            if status == HTTPStatus.PARTIAL_CONTENT:
                self.headers["Content-Range"] = f"bytes {start}-{start + count - 1}/{self._size}"
            elif status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                self.headers["Content-Range"] = f"bytes */{self._size}"
            elif status == HTTPStatus.NOT_MODIFIED:
                del self.headers["Content-Length"]
            await send({"type": "http.response.start", "status": int(status), "headers": self.raw_headers})
            if scope["method"] != "HEAD" and count:
                await send_file(scope, receive, send, self._file, offset=start, count=count)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _part(self, method: str, asked: Headers) -> tuple[HTTPStatus, int, int]:
        """Status, first byte and number of bytes."""
        if "if-match" in asked and not _among(self._etag, asked["if-match"]):
            return HTTPStatus.PRECONDITION_FAILED, 0, 0
        if "if-none-match" in asked and _among(self._etag, asked["if-none-match"].replace("W/", "")):
            return HTTPStatus.NOT_MODIFIED, 0, 0
        found = _RANGE.fullmatch(asked.get("range", "").strip())
        if method != "GET" or found is None or asked.get("if-range", self._etag) != self._etag:
            return HTTPStatus.OK, 0, self._size
        first, last, suffix = found.groups()
        if suffix is not None:
            start, end = max(0, self._size - int(suffix)), self._size
        else:
            start, end = int(first), min(self._size, int(last) + 1 if last else self._size)
        if start >= end:
            return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, 0
        return HTTPStatus.PARTIAL_CONTENT, start, end - start


async def send_file(scope: Scope, receive: Receive, send: Send, file: BinaryIO, *, offset: int = 0, count: int) -> None:
    """Part of a body. By the operating system where the server and the file allow it.

    Raises ClientDisconnect, and OSError where the file has fewer bytes.
    """
    if EXTENSION in scope.get("extensions", {}) and _has_descriptor(file):
        message = {"type": EXTENSION, "file": file, "offset": offset, "count": count, "more_body": True}
        await send(message)
        return
    await run_in_threadpool(file.seek, offset)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        while count and not gone.done():
            chunk = await run_in_threadpool(file.read, min(CHUNK_BYTES, count))
            if not chunk:
                raise OSError(f"{file.name} ended {count} bytes early")
            count -= len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if count:
            raise ClientDisconnect
    finally:
        gone.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _has_descriptor(file: BinaryIO) -> bool:
    try:
        file.fileno()
    except UnsupportedOperation:
        return False
    return True


def _among(etag: str, listed: str) -> bool:
    return listed.strip() == "*" or etag in (item.strip() for item in listed.split(","))
