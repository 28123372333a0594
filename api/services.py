"""What every endpoint works with, made once by `create_app` and handed to endpoints as a dependency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.event_stream import Feed
from control_plane.database import Database
from control_plane.hints import Hints
from control_plane.quotas import Limits, default_limits
from control_plane.rate_limits import RateLimits
from control_plane.settings import Settings
from control_plane.storage import Storage


@dataclass(frozen=True)
class Services:
    settings: Settings
    database: Database
    storage: Storage
    hints: Hints
    feed: Feed
    rate_limits: RateLimits

    @property
    def limits(self) -> Limits:
        """What a project may have that has no limits of its own."""
        return default_limits(self.settings)


async def services_of(request: Request) -> Services:
    """Not a plain function, which FastAPI would hand to a thread; so are all dependencies that only look."""
    services: Services = request.app.state.services
    return services


ServicesOf = Annotated[Services, Depends(services_of)]
