"""What says that a create request may have been sent before: two headers, the same on every route that creates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header

from api.auth import Caller
from control_plane.repetition import Repeatable


@dataclass(frozen=True)
class Repeats:
    idempotency_key: str | None
    retries: int
    """How often the openai client says that it sent this before."""

    @property
    def possible(self) -> bool:
        """Whether the client says that this may not be the first time."""
        return self.idempotency_key is not None or self.retries > 0

    def by(self, caller: Caller) -> Repeatable:
        return Repeatable(self.idempotency_key, caller.key_id, is_retry=self.retries > 0)


async def _read(
    idempotency_key: Annotated[str | None, Header(description="The same key and request make one thing.")] = None,
    x_stainless_retry_count: Annotated[int, Header()] = 0,
) -> Repeats:
    return Repeats(idempotency_key, x_stainless_retry_count)


RepeatsOf = Annotated[Repeats, Depends(_read)]
