"""The server that rests between requests."""

from __future__ import annotations

import signal
import socket
import threading

import httpx2
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from api import server as server_module
from api.server import Server
from tests.service import poll_until


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})


def test_an_order_to_stop_is_heard_while_it_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "TICK_SECONDS", 3600.0)
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(uvicorn.Config(answer, lifespan="off", loop="asyncio", log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    poll_until(lambda: server.started, "it serves")
    said = httpx2.get(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert (said.text, "date" in said.headers) == ("here", True)
    server.handle_exit(signal.SIGTERM, None)
    thread.join(timeout=60)
    assert not thread.is_alive()
