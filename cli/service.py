"""The embedded service: PostgreSQL, Redis, the worker and the API as parts of one `dpo up`."""

from __future__ import annotations

import http.client
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from pydantic import SecretStr

from cli.data_folder import DataFolder
from cli.parts import Part
from cli.restarts import Watched
from cli.servers import postgres, redis_server
from cli.settings import clear_settings
from control_plane.settings import Settings

WATCH_SECONDS = 0.2


class Service:
    """Starts the parts in the order in which they need each other, watches them, and stops them in reverse.

    `listener` is the API's bound socket: a port that is taken is known before anything starts, and while
    the API is started again its clients wait instead of being refused. `lock` is the data folder's.
    """

    def __init__(
        self,
        folder: DataFolder,
        *,
        listener: socket.socket,
        lock: int,
        cpu_slots: int | None,
        say: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.listener = listener
        self.lock = lock
        self.cpu_slots = cpu_slots
        self.say = say
        self.host, self.port = listener.getsockname()
        self.watched: list[Watched] = []

    def start_servers(self) -> Settings:
        """PostgreSQL and Redis, ready for connections; returns the settings of the parts that use them."""
        self.folder.withdraw()
        database, database_url = postgres(self.folder.path, self.say)
        broker, redis_url = redis_server(self.folder.path)
        with clear_settings():
            settings = Settings(
                database_url=SecretStr(database_url),
                redis_url=SecretStr(redis_url),
                storage_url=self.folder.storage.as_uri(),
                runs_dir=self.folder.runs,
                host=self.host,
                port=self.port,
            )
        self._start(database, broker)
        return settings if self.cpu_slots is None else settings.model_copy(update={"cpu_slots": self.cpu_slots})

    def start_program(self, settings: Settings) -> None:
        """The worker and the API; returns when the API says that it is ready."""
        environment = {
            "DPO_DATABASE_URL": settings.database_url.get_secret_value(),
            "DPO_REDIS_URL": settings.redis_url.get_secret_value(),
            "DPO_STORAGE_URL": settings.storage_url,
            "DPO_RUNS_DIR": str(settings.runs_dir),
            "DPO_CPU_SLOTS": str(settings.cpu_slots),
        }
        worker = Part(
            name="worker",
            argv=_dpo("worker"),
            log=self.folder.logs / "worker.log",
            ready=lambda: True,  # jobs wait in PostgreSQL until it comes
            environment=environment,
            stop_seconds=settings.stop_seconds + settings.lease_seconds + 20,  # see worker/main.py
            # Without us PostgreSQL is going too, so a checkpoint could not be published any more.
            death_signal=signal.SIGKILL,
        )
        api = Part(
            name="api",
            argv=_dpo("api", "--fd", str(self.listener.fileno())),
            log=self.folder.logs / "api.log",
            ready=self._answers,
            environment=environment,
            keep_open=(self.listener.fileno(),),
        )
        self._start(worker, api)

    def watch(self) -> NoReturn:
        """Starts again what ends by itself, until a signal raises KeyboardInterrupt."""
        while True:
            for watched in self.watched:
                watched.look(time.monotonic())
            time.sleep(WATCH_SECONDS)

    def stop(self) -> None:
        """Last started, first stopped: no part loses what it needs while it finishes."""
        self.folder.withdraw()
        self.listener.close()
        for watched in reversed(self.watched):
            self.say(f"stopping {watched.part.name}")
            watched.part.stop()

    def hurry(self) -> None:
        """Kills what `stop` waits for. PostgreSQL keeps its order: its stop is fast, and it guards the data."""
        for watched in self.watched:
            if watched.part.name != "postgres":
                watched.part.kill()

    def _start(self, *parts: Part) -> None:
        for part in parts:
            part.keep_open += (self.lock,)
            part.start()
            self.watched.append(Watched(part, self.say))
        for part in parts:
            part.wait_ready()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _dpo(*arguments: str) -> list[str]:
    """This `dpo` with other arguments. -P: a folder `api` in the current folder must not hide our own."""
    return [sys.executable, "-P", "-m", "cli", *arguments]
