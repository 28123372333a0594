"""A whole service for a test: `dpo api` and `dpo worker` as processes over the session's PostgreSQL and Redis."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

import httpx2
import psutil
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from pydantic import SecretStr

from control_plane import keys, models, projects
from control_plane.database import Database
from control_plane.settings import Settings
from tests.conftest import Servers
from tests.makers import make_tiny_model
from worker.sweep import MARK, alive

FINAL = ("succeeded", "failed", "cancelled")


def poll_until(condition: Callable[[], bool], what: str, *, seconds: float = 200.0, every: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {seconds:g} s: {what}")
        time.sleep(every)


@dataclass
class Service:
    """A running service, and what tests ask it; all answers come over HTTP."""

    settings: Settings
    url: str
    key: str
    logs: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.openai = OpenAI(base_url=f"{self.url}/v1", api_key=self.key)
        self.http = httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60)

    def checkpoint_steps(self, job_id: str) -> list[int]:
        return [checkpoint.step_number for checkpoint in self.openai.fine_tuning.jobs.checkpoints.list(job_id)]

    @property
    def runs(self) -> Path:
        assert self.settings.runs_dir is not None
        return self.settings.runs_dir

    def upload(self, path: Path) -> str:
        return self.openai.files.create(file=path, purpose="fine-tune").id

    def start_job(self, model: str, file_id: str, method: str, ranks: int = 2, **training: Any) -> str:
        job = self.openai.fine_tuning.jobs.create(
            model=model,
            training_file=file_id,
            method={"type": method},  # type: ignore[arg-type,typeddict-item]
            extra_body={"training": training, "resources": {"gpus": ranks}},
        )
        return job.id

    def job(self, job_id: str) -> FineTuningJob:
        return self.openai.fine_tuning.jobs.retrieve(job_id)

    def finished(self, job_id: str) -> FineTuningJob:
        poll_until(lambda: self.job(job_id).status in FINAL, f"{job_id} is over")
        return self.job(job_id)

    def succeeded(self, job_id: str) -> str:
        """Waits for the job and returns its model's id."""
        job = self.finished(job_id)
        assert job.status == "succeeded", job.error
        assert job.fine_tuned_model is not None
        return job.fine_tuned_model

    def metrics(self, job_id: str, split: str = "train") -> list[dict[str, float]]:
        """Measurements by step; `step` stands among the values."""
        answer = self.http.get(f"/v1/fine_tuning/jobs/{job_id}/metrics", params={"split": split})
        assert answer.status_code == 200, answer.text
        return [{"step": line["step"], **line["values"]} for line in answer.json()["data"]]

    def download(self, model_id: str) -> dict[str, bytes]:
        """A model's files by name."""
        answer = self.http.get(f"/v1/models/{model_id}/archive")
        assert answer.status_code == 200, answer.text
        files = {}
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                files[Path(member.name).name] = content.read()
        return files

    def trainers(self) -> list[psutil.Process]:
        """Every process of every run of this service."""
        return run_processes(self.runs)

    def nothing_left(self) -> None:
        poll_until(lambda: not self.trainers(), "no trainer process is left")
        poll_until(lambda: not glob("*/*", root_dir=self.runs), "no run directory is left")  # noqa: PTH207 - see folders.py

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")


def run_processes(runs: Path) -> list[psutil.Process]:
    """Every living process of every run directory below `runs`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(str(runs)) and alive(process):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@contextmanager
def service(settings: Settings, folder: Path, base_models: dict[str, Path]) -> Iterator[Service]:
    """Starts API and worker, with the base models registered; at the end stops both and finds nothing left."""
    settings = settings.model_copy(update={"runs_dir": folder / "runs", "heartbeat_seconds": 0.5, "poll_seconds": 0.5})
    key = _prepare(settings, base_models)
    listener = socket.create_server(("127.0.0.1", 0))
    running = Service(settings, f"http://127.0.0.1:{listener.getsockname()[1]}", key, folder)
    try:
        _start(running, "api", "--fd", str(listener.fileno()), keep_open=(listener.fileno(),))
        _start(running, "worker")
        poll_until(lambda: _ready(running), "the API is ready")
        yield running
    finally:
        for process in reversed(running.processes.values()):
            process.send_signal(signal.SIGTERM)
        codes = {name: process.wait(timeout=60) for name, process in running.processes.items()}
        running.openai.close()
        running.http.close()
        listener.close()
    # uvicorn ends well and then raises the signal again, for its parent to see
    assert codes == {"api": -signal.SIGTERM, "worker": 0}, codes
    assert running.trainers() == []


@contextmanager
def running_service(servers: Servers, migrated_template: str, folder: Path, name: str) -> Iterator[Service]:
    """A service with the base model `base/tiny`, over a database of its own."""
    (folder / "storage").mkdir()
    servers.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    settings = Settings(
        database_url=SecretStr(servers.url_of(name)),
        redis_url=SecretStr(servers.redis_url),
        storage_url=(folder / "storage").as_uri(),
        cpu_slots=2,
    )
    with service(settings, folder, {"tiny": make_tiny_model(folder / "tiny")}) as running:
        yield running


def _prepare(settings: Settings, base_models: dict[str, Path]) -> str:
    database = Database(settings.database_url.get_secret_value())
    with database.transaction() as session:
        project = projects.ensure(session, "default")
        for name, path in base_models.items():
            models.register_base(session, path, name)
        _, secret = keys.create(session, project.id, "test")
    database.dispose()
    return secret


def _start(running: Service, part: str, *arguments: str, keep_open: tuple[int, ...] = ()) -> None:
    settings = running.settings
    environment = os.environ | {
        "DPO_DATABASE_URL": settings.database_url.get_secret_value(),
        "DPO_REDIS_URL": settings.redis_url.get_secret_value(),
        "DPO_STORAGE_URL": settings.storage_url,
        "DPO_RUNS_DIR": str(running.runs),
        "DPO_CPU_SLOTS": str(settings.cpu_slots),
        "DPO_HEARTBEAT_SECONDS": str(settings.heartbeat_seconds),
        "DPO_POLL_SECONDS": str(settings.poll_seconds),
        "CUDA_VISIBLE_DEVICES": "",
    }
    with open(running.logs / f"{part}.log", "wb") as log:
        command = [sys.executable, "-m", "cli", part, *arguments]
        running.processes[part] = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, pass_fds=keep_open
        )


def _ready(running: Service) -> bool:
    assert running.processes["api"].poll() is None, running.log("api")
    try:
        return running.http.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False
