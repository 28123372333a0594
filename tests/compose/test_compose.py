"""The compose file, as an operator uses it: from nothing to a trained checkpoint, through deaths and a restart."""

from __future__ import annotations

import io
import logging
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from safetensors.numpy import load

from tests.compose.engine import Compose
from tests.makers import write_preference_file
from tests.service import FINAL, poll_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(4800)]
logger = logging.getLogger(__name__)

SERVICES = ("postgres", "redis", "api", "worker")
STEPS, CHECKPOINT_STEPS = 240, 20
TRAINING = {
    "learning_rate": 1e-3,
    "batch_size": 64,
    "max_steps": STEPS,
    "max_length": 128,
    "validation_fraction": 0.0,
    "checkpoint_steps": CHECKPOINT_STEPS,
}


class Service:
    """What a user of the service sees: its HTTP API."""

    def __init__(self, compose: Compose, key: str) -> None:
        url = f"http://127.0.0.1:{compose.variables['DPO_PORT']}"
        self.openai = OpenAI(base_url=f"{url}/v1", api_key=key)
        self.http = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def close(self) -> None:
        self.openai.close()
        self.http.close()

    def ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def steps(self, job_id: str) -> list[int]:
        """The steps that have a checkpoint."""
        return sorted(point.step_number for point in self.openai.fine_tuning.jobs.checkpoints.list(job_id))

    def run(self, job_id: str) -> dict[str, Any]:
        """Where the job really is: state, progress, attempt."""
        run: dict[str, Any] = self.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["run"]
        return run

    def archive(self, model: str) -> dict[str, bytes]:
        answer = self.http.get(f"/v1/models/{model}/archive")
        assert answer.status_code == 200, answer.text
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
            members = {Path(member.name).name: archive.extractfile(member) for member in archive if member.isfile()}
            return {name: content.read() for name, content in members.items() if content is not None}


def up(compose: Compose, service: Service) -> None:
    """`compose up`, until the API says that it is ready and every health check passes."""
    started = time.monotonic()
    # podman-compose can't start what depends on a part that ended well (its issue 683), so nothing waits there,
    # and every part has to cope with that.
    compose("up", "--detach", *(["--no-deps"] if compose.engine == "podman" else []), seconds=600)
    poll_until(service.ready, "the API is ready", seconds=180)
    logger.info("ready %.1f s after `up`", time.monotonic() - started)
    for name in SERVICES:
        poll_until(lambda name=name: compose.healthy(name), f"{name} is healthy", seconds=120, every=2)  # type: ignore[misc]
    logger.info("healthy %.1f s after `up`", time.monotonic() - started)


def wait_for_steps(service: Service, job_id: str, more_than: int) -> None:
    """Until there are more than so many checkpoints of a job that isn't over."""
    poll_until(lambda: len(service.steps(job_id)) > more_than, f"more than {more_than} checkpoints", seconds=300)
    assert service.openai.fine_tuning.jobs.retrieve(job_id).status not in FINAL, "it ended before it could be killed"


def crash(compose: Compose, name: str) -> None:
    """kill -9 of everything in the container; the engine's restart policy has to bring it back."""
    before = compose.state(name)["StartedAt"]
    subprocess.run(
        [compose.engine, "exec", compose.container(name), "python", "-c", "import os; os.kill(-1, 9)"],
        capture_output=True,
        timeout=60,
        check=False,  # it ends with the container that it killed
    )
    poll_until(lambda: compose.state(name)["StartedAt"] != before, f"{name} was restarted", seconds=60)
    logger.info("%s was killed inside its container, and restarted by its policy", name)


def kill(compose: Compose, name: str) -> None:
    """Kills the container by the engine's own command. No policy restarts what an operator killed: we do."""
    container = compose.container(name)
    compose.engine_run("kill", "--signal", "KILL", container)
    poll_until(lambda: not compose.state(name)["Running"], f"{name} is dead", seconds=60)
    compose.engine_run("start", container)
    logger.info("%s's container was killed, and started again", name)


def drain(compose: Compose, service: Service, job_id: str) -> None:
    """`compose stop` leaves time for a checkpoint at the very step, wherever that is."""
    compose("stop", "worker", seconds=240)
    assert compose.state("worker")["ExitCode"] == 0
    run = service.run(job_id)
    assert run["state"] == "queued"
    assert run["progress"]["step"] == service.steps(job_id)[-1]
    compose("start", "worker")
    logger.info("worker was stopped after a checkpoint at step %s, and started again", run["progress"]["step"])


def test_from_nothing_through_deaths_to_a_checkpoint_that_stays(compose: Compose, tmp_path: Path) -> None:
    keyless = Service(compose, "none yet")
    up(compose, keyless)
    keyless.close()
    key = compose("exec", "-T", "api", "dpo", "keys", "create", "test").strip()
    assert compose("exec", "-T", "api", "dpo", "models", "add", "/models/tiny").strip() == "base/tiny"
    service = Service(compose, key)
    pairs = write_preference_file(tmp_path / "pairs.jsonl", 256)
    file_id = service.openai.files.create(file=pairs, purpose="fine-tune").id
    job_id = service.openai.fine_tuning.jobs.create(
        model="base/tiny",
        training_file=file_id,
        method={"type": "dpo"},
        extra_body={"training": TRAINING, "resources": {"gpus": 2}},
    ).id

    wait_for_steps(service, job_id, 0)
    attempt = service.run(job_id)["attempt"]
    crash(compose, "worker")
    wait_for_steps(service, job_id, len(service.steps(job_id)))
    kill(compose, "worker")
    wait_for_steps(service, job_id, len(service.steps(job_id)))
    drain(compose, service, job_id)
    poll_until(lambda: service.openai.fine_tuning.jobs.retrieve(job_id).status in FINAL, "the job is over", seconds=600)
    job = service.openai.fine_tuning.jobs.retrieve(job_id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model is not None
    assert service.run(job_id)["attempt"] == attempt + 3
    assert set(range(CHECKPOINT_STEPS, STEPS + 1, CHECKPOINT_STEPS)) <= set(service.steps(job_id))
    model = service.archive(job.fine_tuned_model)
    assert load(model["model.safetensors"])["model.embed_tokens.weight"].shape == (264, 64)

    compose("down", seconds=600)
    assert compose.container("api") == ""
    up(compose, service)
    assert service.openai.files.content(file_id).read() == pairs.read_bytes()
    assert service.openai.fine_tuning.jobs.retrieve(job_id) == job
    assert service.archive(job.fine_tuned_model) == model
    service.close()


def test_refuses_to_start_without_secrets(compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "empty.env").touch()
    without = replace(compose, env_file=tmp_path / "empty.env")
    with pytest.raises(AssertionError, match=r"run deploy/make-env first"):
        without("up", "--detach")
