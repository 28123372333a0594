"""uvicorn's server, which at rest wakes up once a second, not ten times: that is most of what an idle API costs.

`main_loop` stands for uvicorn's own: look at that one when its pin is raised.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import FrameType

import uvicorn

TICK_SECONDS = 1.0
"""Of the `date` header. An order to stop is heard at once."""


class Server(uvicorn.Server):
    _told: asyncio.Event
    _loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        self._told, self._loop = asyncio.Event(), asyncio.get_running_loop()
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), TICK_SECONDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self._loop is not None:  # it serves
            self._loop.call_soon_threadsafe(self._told.set)
