"""The real application behind a real uvicorn on a loopback port, with the session's PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
import io
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import uvicorn
from openai import OpenAI
from pydantic import SecretStr

from api.main import create_app
from api.zero_copy import ZeroCopyProtocol
from control_plane import keys, projects
from control_plane.database import Database
from control_plane.settings import Settings
from tests.conftest import Servers
from tests.service import poll_until


@dataclass(frozen=True)
class Api:
    url: str
    host: str
    port: int


def what_it_does(server: uvicorn.Server) -> str:
    """Where every task of a server that does not end stands, and every thread."""
    said = io.StringIO()
    for task in asyncio.all_tasks(server.servers[0].get_loop()):
        task.print_stack(file=said)
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        said.write(f"\n{names.get(ident)}:\n")
        traceback.print_stack(frame, file=said)
    return said.getvalue()


@contextmanager
def serving() -> Iterator[Callable[[Settings], Api]]:
    """Starts the API with the given settings; every one started is stopped at the end."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(settings: Settings) -> Api:
        config = uvicorn.Config(
            create_app(settings),
            host="127.0.0.1",
            port=0,
            http=ZeroCopyProtocol,
            loop="asyncio",
            log_config=None,
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 120
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()
        return Api(f"http://{host}:{port}", host, port)

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive(), what_it_does(server)


@pytest.fixture
def serve() -> Iterator[Callable[[Settings], Api]]:
    """For tests that need settings of their own."""
    with serving() as start:
        yield start


@pytest.fixture(scope="session")
def shared_settings(shared_database_url: str, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        database_url=SecretStr(shared_database_url),
        redis_url=SecretStr(servers.redis_url),
        storage_url=tmp_path_factory.mktemp("storage").as_uri(),
        port=0,
    )


@pytest.fixture(scope="session")
def shared_api(shared_settings: Settings) -> Iterator[Api]:
    """One server for all: it keeps nothing between two requests, and starting one is most of a test's time."""
    with serving() as start:
        yield start(shared_settings)


@pytest.fixture
def database_url(emptied_database_url: str) -> str:
    return emptied_database_url


@pytest.fixture
def settings(shared_settings: Settings, database_url: str) -> Iterator[Settings]:
    """The shared server's; rows and objects are gone after the test."""
    yield shared_settings
    for folder in Path(shared_settings.storage_url.removeprefix("file://")).iterdir():
        if not folder.name.startswith("."):
            shutil.rmtree(folder)


@pytest.fixture
def api(shared_api: Api, settings: Settings) -> Api:
    return shared_api


@pytest.fixture
def make_key(database: Database) -> Callable[[str], str]:
    """Makes an API key in the project of that name."""

    def make(project: str) -> str:
        with database.transaction() as session:
            return keys.create(session, projects.ensure(session, project).id, "test")[1]

    return make


@pytest.fixture
def secret(make_key: Callable[[str], str]) -> str:
    return make_key("default")


@pytest.fixture
def client(api: Api, secret: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{api.url}/v1", api_key=secret, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def http(api: Api, secret: str) -> Iterator[httpx2.Client]:
    """For what the openai client would never send."""
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx2.Client(base_url=api.url, headers=headers, timeout=120) as client:
        yield client


def answered(ask: Callable[[], httpx2.Response]) -> httpx2.Response:
    """The first answer that is not "on its way"; a worker may take its time on a busy machine."""
    found: list[httpx2.Response] = []

    def there() -> bool:
        found.append(ask())
        return found[-1].status_code != 202

    poll_until(there, "the question is answered")
    return found[-1]
