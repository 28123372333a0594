"""What says that a create request may have been sent before: two headers, the same on every route that creates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from anyio import from_thread
from fastapi import Depends, Header, Request

from api.auth import Caller
from control_plane.repetition import Repeatable


@dataclass(frozen=True)
class Repeats:
    idempotency_key: str | None
    retries: int
    """How often the openai client says that it sent this before."""
    hung_up: Callable[[], bool]
    """Whether the client waits for no answer any more; for functions that run on one of the server's threads."""

    @property
    def possible(self) -> bool:
        """Whether the client says that this may not be the first time."""
        return self.idempotency_key is not None or self.retries > 0

    def by(self, caller: Caller) -> Repeatable:
        return Repeatable(self.idempotency_key, caller.key_id, is_retry=self.retries > 0, hung_up=self.hung_up)


async def _read(
    request: Request,
    idempotency_key: Annotated[str | None, Header(description="The same key and request make one thing.")] = None,
    x_stainless_retry_count: Annotated[int, Header()] = 0,
) -> Repeats:
    return Repeats(idempotency_key, x_stainless_retry_count, partial(from_thread.run, request.is_disconnected))


RepeatsOf = Annotated[Repeats, Depends(_read)]
