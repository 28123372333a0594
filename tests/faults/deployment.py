"""A service under faults: a `dpo up` with short leases, and perhaps more workers beside it.

Its trainer is the stub (tests/stub_trainer.py) or the real one; a fault is written once and strikes both.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import psycopg
from psycopg.rows import TupleRow
from pydantic import SecretStr

from cli.parts import Part
from cli.servers import postgres_url, socket_folder
from control_plane import models
from control_plane.database import Database
from control_plane.settings import Settings
from control_plane.storage import DirectoryStorage
from control_plane.tables import Model
from tests.cli.running import Running, alive
from tests.faults.cables import Cable
from tests.faults.seen import Seen
from tests.faults.up import STUB_WORKER, program
from tests.makers import make_tiny_model, write_preference_file
from tests.service import Service, poll_until

Trainer = Literal["stub", "real"]
REAL_WORKER = [sys.executable, "-P", "-m", "cli", "worker"]


@dataclass(frozen=True)
class Size:
    """How long the jobs of a deployment are, and how soon its workers notice what happens."""

    steps: int
    checkpoint_steps: int
    lease_seconds: float
    pace: float = 0.0
    """Seconds a step of the stub; the real trainer takes what it takes."""
    ranks: int = 1
    deadline: float = 240.0
    """Seconds after which a job that isn't over counts as lost."""


STUB = Size(steps=24, checkpoint_steps=4, lease_seconds=4.0, pace=0.1)
REAL = Size(steps=60, checkpoint_steps=5, lease_seconds=6.0, ranks=2, deadline=600.0)
HEARTBEAT_SECONDS = POLL_SECONDS = 0.5
MAX_ATTEMPTS = 4
"""Attempts without progress before a job fails."""


class Deployment(Seen):
    """One `dpo up`, with the model `base/tiny`, a file of pairs, and `workers` more workers beside its own."""

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        size: Size,
        *,
        workers: int = 0,
        slots: int = 2,
        own_slots: int = 2,
        settings: dict[str, str] | None = None,
        stub_options: Sequence[str] = (),
        cables: Sequence[Cable] = (),
        beside: dict[str, str] | None = None,
    ) -> None:
        """`slots`: of each worker beside; `own_slots`: of `dpo up`'s. `settings`: more variables for all parts, and
        `beside` for the workers beside. `cables`: how each of these reaches PostgreSQL."""
        self.trainer, self.size, self.folder, self.slots = trainer, size, folder, slots
        self.patience = size.deadline
        self.cables = {f"beside-{number}": cable for number, cable in enumerate(cables)}
        self.data = folder / "data"
        self.account = folder / "account.txt"
        self.base_model = folder / "tiny"
        self.environment = {
            "DPO_LEASE_SECONDS": f"{size.lease_seconds:g}",
            "DPO_HEARTBEAT_SECONDS": f"{HEARTBEAT_SECONDS:g}",
            "DPO_POLL_SECONDS": f"{POLL_SECONDS:g}",
            "DPO_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PGAPPNAME": "own",
            **(settings or {}),
        }
        self._stub = (
            f"--steps={size.steps}",
            f"--checkpoint-every={size.checkpoint_steps}",
            f"--pace={size.pace}",
            f"--account={self.account}",
            *stub_options,
        )
        self.lost = False
        """Something broke a promise, so that nobody expects order in the end."""
        self._own_slots, self._program = own_slots, program(self._stub if trainer == "stub" else None)
        self.beside: list[Part] = []
        self.running = self._up(port=0)
        try:
            self._open()
            self.beside += [self._worker(number, beside or {}) for number in range(workers)]
            for worker in self.beside:
                worker.start()
            poll_until(lambda: len(self.workers()) == 1 + workers, "all workers are heard of")
            self.pairs = self.service.upload(write_preference_file(folder / "pairs.jsonl", 50))
            self.undisturbed = self.result(self._run_one()) if trainer == "real" else None
        except BaseException:
            self._end()
            raise

    def _up(self, port: int) -> Running:
        return Running(self.data, self._own_slots, port=port, program=self._program, **self.environment)

    def _open(self) -> None:
        self.redis_socket = socket_folder(self.data) / "redis.sock"
        self.settings = Settings(
            database_url=SecretStr(postgres_url(self.data)),
            redis_url=SecretStr(f"redis+socket://{self.redis_socket}"),
            storage_url=(self.data / "storage").as_uri(),
            runs_dir=self.data / "runs",
        )
        self.storage = DirectoryStorage(self.data / "storage")
        self.database = Database(postgres_url(self.data))
        url = str(self.running.record["base_url"]).removesuffix("/v1")
        self.service = Service(self.settings, url, (self.data / "api_key").read_text().strip(), self.data / "logs")
        # An API that is away for some seconds is part of the plan, so this client is patient.
        self.service.openai = self.service.openai.with_options(max_retries=20)
        tiny = self.base_model
        if self.trainer == "real":
            make_tiny_model(tiny)
        else:
            tiny.mkdir(exist_ok=True)
            (tiny / "config.json").write_text("{}")
        with self.database.transaction() as session:
            if self.trainer == "real":
                models.register_base(session, tiny, "tiny")
            else:
                session.add(Model(id="base/tiny", kind="base", form="full", path=str(tiny), facts={}))

    def _worker(self, number: int, more: dict[str, str]) -> Part:
        name = f"beside-{number}"
        settings, cable = self.settings, self.cables.get(name)
        own = {
            "DPO_DATABASE_URL": settings.database_url.get_secret_value(),
            "DPO_REDIS_URL": settings.redis_url.get_secret_value(),
            "DPO_STORAGE_URL": settings.storage_url,
            "DPO_RUNS_DIR": str(settings.runs_dir),
            "DPO_CPU_SLOTS": str(self.slots),
            "PGAPPNAME": name,
        }
        argv = [sys.executable, *STUB_WORKER, *self._stub] if self.trainer == "stub" else REAL_WORKER
        if cable is not None:
            own["DPO_DATABASE_URL"] = cable.database_url(socket_folder(self.data) / "postgres" / ".s.PGSQL.5432")
            argv = cable.inside(*argv)
        return Part(
            name=name,
            argv=argv,
            log=self.data / "logs" / f"{name}.log",
            ready=lambda: True,
            environment=self.environment | own | more,
        )

    def _run_one(self) -> str:
        job_id = self.start_job()
        self.over(job_id)
        return job_id

    # -- jobs ----------------------------------------------------------------------------------------------

    def start_job(self, file_id: str | None = None) -> str:
        """The id of a job that the API accepted."""
        size = self.size
        spec: dict[str, Any] = {}
        if self.trainer == "real":
            spec = {
                "learning_rate": 1e-3,
                "batch_size": 8,
                "max_steps": size.steps,
                "max_length": 128,
                "validation_fraction": 0.2,
                "evaluation_steps": 10,
                "checkpoint_steps": size.checkpoint_steps,
                "zero_stage": 2 if size.ranks > 1 else 0,
            }
        return self.service.start_job("base/tiny", file_id or self.pairs, "dpo", ranks=size.ranks, **spec)

    def look_after_workers(self) -> None:
        """Starts the workers beside again that ended, as `dpo up` does with its own."""
        for worker in self.beside:
            if not worker.alive():
                worker.start()

    def admin(self) -> psycopg.Connection[TupleRow]:
        """A connection to another database of the same PostgreSQL: it stays when the service's is closed."""
        sockets = str(socket_folder(self.data) / "postgres")
        return psycopg.connect(host=sockets, user="postgres", dbname="template1", autocommit=True, connect_timeout=10)

    def admin_of_service(self) -> psycopg.Connection[TupleRow]:
        url = self.settings.database_url.get_secret_value().replace("+psycopg", "")
        return psycopg.connect(url, autocommit=True, connect_timeout=10)

    def kill_and_start_again(self) -> None:
        """`dpo up`, with all that hangs below it."""
        port = self.service.openai.base_url.port
        self.running.process.kill()
        self.running.clean_up()
        self.running = self._up(port=port or 0)

    # -- the end -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ctrl-C, and nothing is left: no descendant, and no process that was told of the data folder."""
        for worker in self.beside:
            worker.stop()
        family = psutil.Process(self.running.process.pid).children(recursive=True)
        code = self.running.stop()
        left = [process for process in (*family, *psutil.process_iter()) if self._of_this_service(process)]
        assert code == 0, f"`dpo up` ended with exit code {code}: {self.running.said()}"
        assert not left, f"still there after `dpo up`: {left}"
        assert not list(self.service.runs.glob("*/*")), "run directories are left after `dpo up`"

    def _end(self) -> None:
        for worker in self.beside:
            worker.kill()
            worker.stop()
        self.running.clean_up()

    def close(self) -> None:
        self._end()
        self.database.dispose()
        self.service.openai.close()
        self.service.http.close()
        shutil.rmtree(socket_folder(self.data), ignore_errors=True)

    def _of_this_service(self, process: psutil.Process) -> bool:
        try:
            told = [*process.environ().values(), *process.cmdline()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False
        return alive(process) and any(str(self.data) in text for text in told)


@contextmanager
def deployment(folder: Path, trainer: Trainer, size: Size, **more: Any) -> Iterator[Deployment]:
    """Stopped at the end, when nothing of it may be left. Arguments as Deployment's."""
    running = Deployment(folder, trainer, size, **more)
    try:
        yield running
        if not running.lost:
            running.stop()
    finally:
        running.close()
