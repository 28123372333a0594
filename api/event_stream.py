"""A job's events as server-sent events (WHATWG HTML, "Server-sent events"), for any number of listeners at once.

A listener costs a socket and an entry in a dictionary, no thread and no connection to PostgreSQL: one query every
POLL_SECONDS asks for what is new to all of them, and none is asked while nobody listens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable

from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from api.job_shapes import job_event
from control_plane import events
from control_plane.database import Database
from control_plane.events import News
from control_plane.tables import Event

POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
"""A comment so often, that no proxy takes the connection for dead, and that a client that is gone is noticed."""
RETRY = "retry: 2000\n"
"""How many milliseconds a browser waits before it connects again. Here and behind a comment stands no empty line, at
which the openai client would look for an event's data."""
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

logger = logging.getLogger(__name__)


class Feed:
    """What is new of any job, for those who wait for it. Of one event loop."""

    def __init__(self, database: Database) -> None:
        self.stopping: Callable[[], bool] = lambda: False
        """Whether the server is about to stop, which must not wait for streams without an end."""
        self._database = database
        self._waiting: dict[asyncio.Future[News], tuple[str, int]] = {}
        self._poller: asyncio.Task[None] | None = None

    async def after(self, job_id: str, sequence: int) -> News:
        """The job's events behind `sequence`, waited for until there are any or the job is over."""
        future: asyncio.Future[News] = asyncio.get_running_loop().create_future()
        self._waiting[future] = (job_id, sequence)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            return await future
        finally:
            self._waiting.pop(future, None)

    async def _poll(self) -> None:
        """As long as somebody waits. What goes wrong is everybody's who waits."""
        while self._waiting:
            asked = dict(self._waiting)
            try:
                news = await run_in_threadpool(self._read, asked.values())
            except (OperationalError, PoolTimeout) as error:
                logger.warning("events are not streamed while PostgreSQL doesn't answer: %s", error)
                news = {}
            except Exception as error:  # noqa: BLE001 - handed on
                for future in asked:
                    if not future.done():
                        future.set_exception(error)
                return
            ending = self.stopping()
            for future, (job_id, sequence) in asked.items():
                found = news[job_id].behind(sequence) if job_id in news else News([], over=False)
                if not future.done() and (found.events or found.over or ending):
                    future.set_result(News(found.events, over=found.over or ending))
            await asyncio.sleep(POLL_SECONDS)

    def _read(self, places: Iterable[tuple[str, int]]) -> dict[str, News]:
        first: dict[str, int] = {}
        for job_id, sequence in places:
            first[job_id] = min(sequence, first.get(job_id, sequence))
        with self._database.transaction() as session:
            return events.after(session, first)


async def stream(feed: Feed, job_id: str, sequence: int) -> AsyncIterator[str]:
    """The job's events behind `sequence`, oldest first, until its last one."""
    yield RETRY
    while True:
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                news = await feed.after(job_id, sequence)
        except TimeoutError:
            yield ":\n"
            continue
        for event in news.events:
            yield _message(event)
            sequence = event.sequence
        if news.over:
            return


def _message(event: Event) -> str:
    return f"id: {event.id}\ndata: {job_event(event).model_dump_json()}\n\n"
