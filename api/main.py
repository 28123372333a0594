"""The HTTP application: `uvicorn api.main:factory --factory`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from api import (
    audit,
    auth,
    checkpoint_permissions,
    errors,
    file_reports,
    files,
    health,
    hub,
    jobs,
    models,
    openapi,
    queue,
    sweeps,
    uploads,
    webhooks,
)
from api.edge import Edge
from api.event_stream import Feed
from api.services import Services
from control_plane.database import Database
from control_plane.hints import Hints
from control_plane.rate_limits import RateLimits
from control_plane.settings import Settings
from control_plane.storage import open_storage


def factory() -> FastAPI:
    """The application with the settings of the environment, for uvicorn's --factory."""
    return create_app(Settings())


def create_app(settings: Settings) -> FastAPI:
    """Connects to nothing until it is asked. Raises InvalidRequest for a storage URL that can't be."""
    storage = open_storage(settings.storage_url)
    database = Database(settings.database_url.get_secret_value())
    services = Services(
        settings=settings,
        database=database,
        storage=storage,
        hints=Hints(settings.redis_url.get_secret_value()),
        feed=Feed(database),
        rate_limits=RateLimits(settings.redis_url.get_secret_value()),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        storage.remove_abandoned()
        yield
        services.hints.close()
        services.rate_limits.close()
        services.database.dispose()

    app = FastAPI(
        title="dpo-service",
        version=version("dpo-service"),
        summary="Aligns language models on preference data; speaks OpenAI's fine-tuning API.",
        redirect_slashes=False,  # a redirect would repeat the Host header's word for where this server is
        docs_url=None,  # the pages load scripts of other people's servers into the operator's browser
        redoc_url=None,
        lifespan=lifespan,
        telemetry={"auto_configure": False},  # else FastAPI would read the environment by itself
    )
    app.state.services = services
    errors.install(app)
    app.add_middleware(Edge)
    parts = (
        files,
        uploads,
        file_reports,
        jobs,
        queue,
        checkpoint_permissions,
        sweeps,
        models,
        webhooks,
        audit,
        health,
        hub,
    )
    for part in parts:
        app.include_router(part.router)
    auth.require_scopes(app)
    openapi.complete(app, sweeps.request_schema() | uploads.request_schema() | webhooks.request_schema())
    return app
