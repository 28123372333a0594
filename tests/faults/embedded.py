"""A `dpo up` for the tests of deaths: real parts and ranks, short leases, and a look at what runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from pydantic import SecretStr
from sqlalchemy import select

from cli.servers import postgres_url, socket_folder
from control_plane.database import Database
from control_plane.settings import Settings
from control_plane.tables import Attempt, Checkpoint
from dpo_core.run_directory import RunDirectory, read_lines
from tests.cli.running import Running, alive, argv, clean, dpo
from tests.makers import make_tiny_model, write_preference_file
from tests.service import Service
from worker.sweep import MARK

STEPS = 60
SPEC = {
    "learning_rate": 1e-3,
    "batch_size": 8,
    "max_steps": STEPS,
    "max_length": 128,
    "validation_fraction": 0.2,
    "evaluation_steps": 10,
    "checkpoint_steps": 5,
    "zero_stage": 2,
}
QUICK = {
    "DPO_LEASE_SECONDS": "6",
    "DPO_HEARTBEAT_SECONDS": "0.5",
    "DPO_POLL_SECONDS": "0.5",
    "CUDA_VISIBLE_DEVICES": "",
}


class Result(NamedTuple):
    """What a job came to: the same bytes and numbers, whatever died on the way."""

    weights: bytes
    losses: dict[str, list[tuple[float, float]]]
    """Step and loss of every measurement, by split."""

    best: dict[str, Any]
    """`run.best` without the model's id."""


class Embedded:
    """The service of one `dpo up`, with the model `base/tiny` and a file of pairs."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.running = Running(data, cpu_slots=2, **QUICK)
        self.redis_socket = socket_folder(data) / "redis.sock"
        self.settings = Settings(
            database_url=SecretStr(postgres_url(data)),
            redis_url=SecretStr(f"redis+socket://{self.redis_socket}"),
            storage_url=(data / "storage").as_uri(),
            runs_dir=data / "runs",
        )
        self.database = Database(postgres_url(data))
        url = str(self.running.record["base_url"]).removesuffix("/v1")
        self.service = Service(self.settings, url, (data / "api_key").read_text().strip(), data / "logs")
        added = dpo("models", "add", make_tiny_model(folder / "tiny"), "--data", data)
        assert added.returncode == 0, added.stderr
        self.pairs = self.service.upload(write_preference_file(folder / "pairs.jsonl", 50))
        # An API that is away for some seconds is part of the plan, so this client is patient.
        self.service.openai = self.service.openai.with_options(max_retries=12)
        self.undisturbed = self.result(self.start_job())
        """What a job comes to when nothing dies."""

    def close(self) -> None:
        self.database.dispose()
        self.service.openai.close()
        self.service.http.close()
        self.running.clean_up()

    def start_job(self) -> str:
        return self.service.start_job("base/tiny", self.pairs, "dpo", **SPEC)

    def result(self, job_id: str) -> Result:
        """Waits for the job, which must succeed with every step measured once."""
        model_id = self.service.succeeded(job_id)
        losses = {
            split: [(line["step"], line["loss"]) for line in self.service.metrics(job_id, split)]
            for split in ("train", "validation")
        }
        assert [step for step, _ in losses["train"]] == list(range(STEPS))
        assert [step for step, _ in losses["validation"]] == list(range(0, STEPS + 1, SPEC["evaluation_steps"]))
        best = (self.service.job(job_id).model_extra or {})["run"]["best"]
        assert best.pop("model") == f"{model_id}-best"
        return Result(self.service.download(model_id)["model.safetensors"], losses, best)

    # -- what runs now -----------------------------------------------------------------------------------

    def attempt(self, job_id: str) -> RunDirectory | None:
        """The newest attempt's run directory, if there is one."""
        folders = (self.service.runs / job_id).glob("[0-9]*")
        newest = max(folders, key=lambda folder: int(folder.name), default=None)
        return RunDirectory(newest) if newest else None

    def fence(self, job_id: str) -> int:
        run = self.attempt(job_id)
        return int(run.path.name) if run else 0

    def step(self, job_id: str) -> int:
        """The last step that the newest attempt measured; -1 before the first."""
        run = self.attempt(job_id)
        try:
            lines = list(read_lines(run.metrics_file, 0)) if run else []
        except FileNotFoundError:  # cleared away meanwhile
            return -1
        return max((line["step"] for line, _ in lines), default=-1)

    def ranks(self, job_id: str) -> list[psutil.Process]:
        """The processes of the newest attempt that wrote themselves down: ranks, or the one that validates."""
        run = self.attempt(job_id)
        return [process for process in run.recorded_processes() if alive(process)] if run else []

    def launched(self, job_id: str) -> psutil.Process | None:
        """The process of the newest attempt that its worker started: torchrun, or the one that validates."""
        run = self.attempt(job_id)
        for process in self.service.trainers() if run else []:
            with suppress(psutil.NoSuchProcess):
                parent = process.parent()
                if run and process.environ()[MARK] == str(run.path) and parent and MARK not in parent.environ():
                    return process
        return None

    def worker_of(self, job_id: str) -> psutil.Process | None:
        launched = self.launched(job_id)
        with suppress(psutil.NoSuchProcess):
            return launched.parent() if launched else None
        return None

    @contextmanager
    def second_worker(self) -> Iterator[None]:
        """Another `dpo worker` beside the service's own."""
        settings = self.settings
        environment = QUICK | {
            "DPO_DATABASE_URL": settings.database_url.get_secret_value(),
            "DPO_REDIS_URL": settings.redis_url.get_secret_value(),
            "DPO_STORAGE_URL": settings.storage_url,
            "DPO_RUNS_DIR": str(settings.runs_dir),
            "DPO_CPU_SLOTS": "2",
        }
        with open(self.running.data / "logs" / "second-worker.log", "ab") as log:
            worker = subprocess.Popen(argv(("worker",)), env=clean(environment), stdout=log, stderr=log)
        try:
            yield
            worker.terminate()
            assert worker.wait(60) == 0
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()

    # -- what the database says --------------------------------------------------------------------------

    def attempts(self, job_id: str) -> list[tuple[int, str, str | None]]:
        """Fence, kind and outcome of each attempt."""
        query = select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.fence)
        with self.database.transaction() as session:
            return [(row.fence, row.kind, row.outcome) for row in session.scalars(query)]

    def published(self, job_id: str, fence: int) -> list[int]:
        """The steps of the checkpoints that attempt `fence` published."""
        query = select(Checkpoint.step).where(Checkpoint.job_id == job_id, Checkpoint.fence == fence)
        with self.database.transaction() as session:
            return list(session.scalars(query.order_by(Checkpoint.step)))

    # -- the end -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ctrl-C, and nothing is left: no descendant, and no process that was told of the data folder."""
        family = psutil.Process(self.running.process.pid).children(recursive=True)
        assert self.running.stop() == 0
        assert not [process for process in family if alive(process)]
        assert not [process for process in psutil.process_iter() if self._of_this_service(process)]
        assert not list(self.service.runs.glob("*/*"))

    def _of_this_service(self, process: psutil.Process) -> bool:
        try:
            told = [*process.environ().values(), *process.cmdline()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False
        return alive(process) and any(str(self.running.data) in text for text in told)
