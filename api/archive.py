"""A checkpoint's model files as a tar stream: constant memory, and a length known before the first byte."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from datetime import datetime

from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.sending import send_file
from control_plane.storage import Storage

END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Member:
    key: str
    header: bytes
    size: int

    @property
    def padding(self) -> int:
        return -self.size % tarfile.BLOCKSIZE


class Archive(Response):
    """The objects below `prefix` under a folder `name`, in the order of their names. The same bytes every time.

    Raises FileNotFoundError where storage has none.
    """

    media_type = "application/x-tar"

    def __init__(self, storage: Storage, prefix: str, name: str, made_at: datetime) -> None:
        self.status_code = 200
        self.background = None
        self._storage = storage
        self._members = [
            self._member(key, f"{name}/{key.removeprefix(prefix + '/')}", int(made_at.timestamp()))
            for key in storage.keys(prefix)
        ]
        if not self._members:
            raise FileNotFoundError(f"storage has nothing below {prefix}")
        length = sum(len(member.header) + member.size + member.padding for member in self._members) + len(END)
        disposition = f'attachment; filename="{name}.tar"'
        self.init_headers({"Content-Length": str(length), "Content-Disposition": disposition})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for member in self._members:
            await send({"type": "http.response.body", "body": member.header, "more_body": True})
            with await run_in_threadpool(self._storage.open, member.key) as file:
                if member.size:
                    await send_file(scope, receive, send, file, count=member.size)
            await send({"type": "http.response.body", "body": bytes(member.padding), "more_body": True})
        await send({"type": "http.response.body", "body": END, "more_body": False})

    def _member(self, key: str, path: str, made_at: int) -> Member:
        entry = tarfile.TarInfo(path)
        entry.size, entry.mtime, entry.mode = self._storage.size(key), made_at, 0o644
        return Member(key, entry.tobuf(tarfile.PAX_FORMAT), entry.size)
