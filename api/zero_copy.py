"""Files sent by the operating system: uvicorn's HTTP/1.1 protocol with ASGI's extension `http.response.zerocopysend`.

The bytes go from the file to the socket inside the kernel (sendfile(2)); none of them passes through Python. An
application finds the extension in its scope and may send `file`, `offset` and `count` instead of a body.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

EXTENSION = "http.response.zerocopysend"


class ZeroCopyProtocol(H11Protocol):
    """For uvicorn's setting `http`. Needs asyncio's own event loop."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._application: Any = self.app
        self.app = self._with_extension

    async def _with_extension(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("extensions", {})[EXTENSION] = {}

        async def extended(message: Message) -> None:
            if message["type"] != EXTENSION:
                await send(message)
                return
            await self._send_file(message["file"], message["offset"], message["count"])
            if not message.get("more_body", False):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._application(scope, receive, extended)

    async def _send_file(self, file: Any, offset: int, count: int) -> None:
        """Raises ClientDisconnect where nobody reads any more, and OSError where the file has fewer bytes."""
        cycle = self.cycle
        if cycle.disconnected or self.transport.is_closing():
            raise ClientDisconnect
        self.conn.send_with_data_passthrough(h11.Data(data=_Counted(count)))  # type: ignore[arg-type]
        try:
            sent = await self.loop.sendfile(self.transport, file, offset, count)
        except ConnectionError:
            cycle.disconnected = True
            self.transport.abort()
            raise ClientDisconnect from None
        if sent != count:
            self.transport.abort()  # the client waits for bytes that will never come
            raise OSError(f"{file.name} ended {count - sent} bytes early")


class _Counted:
    """What h11 counts in place of bytes that it never sees."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count
