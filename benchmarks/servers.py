"""What a benchmark starts of the service, in processes that end with the benchmark, also when that is killed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cli.parts import Part
from cli.servers import postgres, redis_server
from migrations.run import upgrade


@dataclass(frozen=True)
class Servers:
    folder: Path
    database_url: str
    environment: dict[str, str]
    """What `dpo` programs need to use them, and the storage beside them."""
    processes: list[psutil.Process]
    """PostgreSQL's and Redis'."""


@contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """PostgreSQL with every table, Redis and an empty storage, all in `folder`."""
    database, database_url = postgres(folder, lambda _: None)
    broker, redis_url = redis_server(folder)
    storage = folder / "storage"
    storage.mkdir()
    environment = {
        "DPO_DATABASE_URL": database_url,
        "DPO_REDIS_URL": redis_url,
        "DPO_STORAGE_URL": storage.as_uri(),
        "DPO_RUNS_DIR": str(folder / "runs"),
    }
    with running(database) as first, running(broker) as second:
        upgrade(database_url)
        yield Servers(folder, database_url, environment, [first, second])


@contextmanager
def dpo(
    servers: Servers, *arguments: str, keep_open: tuple[int, ...] = (), more: dict[str, str] | None = None
) -> Iterator[psutil.Process]:
    """`dpo` with these arguments; `more` goes into its environment. Its output is in `logs/`."""
    part = Part(
        name=arguments[0],
        argv=[sys.executable, "-m", "cli", *arguments],
        log=servers.folder / "logs" / f"{arguments[0]}.log",
        ready=lambda: True,
        environment=servers.environment | (more or {}),
        keep_open=keep_open,
        death_signal=signal.SIGKILL,
    )
    with running(part) as process:
        yield process


@contextmanager
def running(part: Part) -> Iterator[psutil.Process]:
    """The part's process, once it is ready."""
    try:
        part.start()
        part.wait_ready()
        assert part.process is not None
        yield psutil.Process(part.process.pid)
    finally:
        part.stop()
