"""The whole service for a benchmark: PostgreSQL, Redis, the API and a worker in processes of their own."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil

from benchmarks.servers import dpo, servers
from control_plane import keys, models, projects
from control_plane.database import Database

JOBS = "/v1/fine_tuning/jobs"
PATIENCE_SECONDS = 600.0
ATTEMPT_OF_TRAINING = 2
"""The fence: validation is the first attempt."""


@dataclass(frozen=True)
class Load:
    """What of a host's cores the trainers use."""

    ranks: int
    threads: int | None = None
    """Of each rank; None shares all cores out among them."""

    @property
    def environment(self) -> dict[str, str]:
        return {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}


@dataclass(frozen=True)
class Service:
    http: httpx2.Client
    runs: Path
    database: Database
    processes: list[psutil.Process]
    """PostgreSQL, Redis, the API and the worker."""

    def cpu_seconds(self) -> float:
        """Of the service, PostgreSQL's processes included, without the trainers."""
        found = 0.0
        for process in self._own():
            with suppress(psutil.NoSuchProcess):  # PostgreSQL's come and go
                # What PostgreSQL's first process has reaped is its own from then on.
                found += sum(process.cpu_times()[: 4 if process == self.processes[0] else 2])
        return found

    def send(self, signal_number: int) -> None:
        """To every process of it, the trainers excepted."""
        for process in self._own():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal_number)

    def _own(self) -> list[psutil.Process]:
        return [*self.processes, *self.processes[0].children(recursive=True)]

    def upload(self, path: Path) -> str:
        with open(path, "rb") as file:
            answer = self.http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (path.name, file)})
        file_id = str(_checked(answer)["id"])
        wait_for(lambda: self.http.get(f"/v1/files/{file_id}/report", params={"wait": 30}).status_code == 200)
        return file_id

    def job(self, job_id: str) -> dict[str, Any]:
        return _checked(self.http.get(f"{JOBS}/{job_id}"))

    def submit(self, request: dict[str, Any]) -> str:
        return str(_checked(self.http.post(JOBS, json=request))["id"])

    def cancel(self, job_id: str) -> None:
        _checked(self.http.post(f"{JOBS}/{job_id}/cancel"))
        wait_for(lambda: self.job(job_id)["status"] == "cancelled")

    def require_success(self, job_id: str) -> None:
        wait_for(lambda: self.job(job_id)["status"] in ("succeeded", "failed", "cancelled"))
        job = self.job(job_id)
        if job["status"] != "succeeded":
            raise RuntimeError(f"The job {job_id} is {job['status']}: {job['error']}")


@contextmanager
def service(folder: Path, model: Path, load: Load) -> Iterator[Service]:
    """PostgreSQL, Redis, API and worker in processes of their own, with `model` registered as base/bench."""
    with servers(folder) as under, socket.create_server(("127.0.0.1", 0)) as port:
        database = Database(under.database_url)
        with database.transaction() as session:
            models.register_base(session, model, "bench")
            _, key = keys.create(session, projects.ensure(session, "default").id, "bench", requests_per_minute=0)
        own = {"DPO_CPU_SLOTS": str(load.ranks), "CUDA_VISIBLE_DEVICES": ""} | load.environment
        url, headers = f"http://127.0.0.1:{port.getsockname()[1]}", {"Authorization": f"Bearer {key}"}
        with (
            dpo(under, "api", "--fd", str(port.fileno()), keep_open=(port.fileno(),), more=own) as api,
            dpo(under, "worker", more=own) as worker,
            httpx2.Client(base_url=url, headers=headers, timeout=60) as http,
        ):
            wait_for(lambda: http.get("/readyz").status_code == 200)
            yield Service(http, folder / "runs", database, [*under.processes, api, worker])
        database.dispose()


def wait_for(condition: Callable[[], bool], every: float = 0.2) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {PATIENCE_SECONDS:g} s")
        time.sleep(every)


def _checked(answer: httpx2.Response) -> dict[str, Any]:
    if answer.is_error:
        raise RuntimeError(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")
    body: dict[str, Any] = answer.json()
    return body
