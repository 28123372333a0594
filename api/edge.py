"""The outermost layer around every request: an id on every answer, and no answer without the envelope."""

from __future__ import annotations

import logging

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import envelope, one_line
from control_plane.ids import new_id

DRAIN_BYTES = 16 * 1024**2
DRAIN_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Edge:
    """ASGI middleware. A failure is logged with the request's id and answered without its details."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:  # PostgreSQL's text can't hold it
            nothing = scope["path"].startswith("/hf/")  # among the Hub's files, such a name is one that isn't there
            status = 404 if nothing else 400
            refusal = envelope(status, "The URL contains a NUL character; remove it.", code="invalid_request")
            await refusal(scope, exchange.receive, exchange.send)
            return
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            logger.info("%s %s: the client went away", exchange.id, exchange.asked)
        except Exception:
            logger.exception("%s %s failed", exchange.id, exchange.asked)
            if exchange.answered:
                raise  # the server cuts the connection, so that the client sees a broken answer
            message = f"The server failed; its log says why, under {exchange.id}. Try again, or ask the operator."
            answer = envelope(500, message, code="internal_error")
            await answer(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer, watched on the way through."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.id = new_id("req")
        self.asked = one_line(scope["method"], scope["path"])
        scope.setdefault("state", {}).update(request_id=self.id, headers={})
        self._scope = scope
        self.answered = False
        self._receive, self._send = receive, send
        headers = Headers(scope=scope)
        self._body_left = "content-length" in headers or "transfer-encoding" in headers

    async def receive(self) -> Message:
        message = await self._receive()
        self._body_left = bool(message.get("more_body", False))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answered = True
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.id
            headers["x-content-type-options"] = "nosniff"
            headers.update(self._scope["state"]["headers"])
            if message["status"] >= 400:
                await self._drain()
        await self._send(message)

    async def _drain(self) -> None:
        """Reads on for a while before a refusal: a client that still sends would see its connection reset
        instead of the reason."""
        drained = 0
        with anyio.move_on_after(DRAIN_SECONDS):
            while self._body_left and drained < DRAIN_BYTES:
                drained += len((await self.receive()).get("body", b""))
