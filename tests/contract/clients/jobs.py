"""Jobs and models through the unmodified openai client, whichever version runs this; its own types check the answers.

tests/contract/test_clients.py runs this file, under one client after the other: it starts the service, with a stub for
a trainer, and says where it is. The trainer holds at a step until the file that CONTRACT_GO names appears.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import FileObject, Model, ModelDeleted
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

MODEL = "base/tiny"
ROWS = b'{"prompt": "What is 1+1?", "chosen": "2", "rejected": "3"}\n' * 20
EXAMPLES = b'{"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}\n' * 20
GO = Path(os.environ["CONTRACT_GO"])

T = TypeVar("T", bound=openai.BaseModel)


@pytest.fixture
def client() -> Iterator[OpenAI]:
    with OpenAI(max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def file(client: OpenAI) -> FileObject:
    return checked(client.files.with_raw_response.create(file=("pairs.jsonl", ROWS), purpose="fine-tune"), FileObject)


def checked(raw: Any, kind: type[T]) -> T:
    """The answer as the client's own type. The client builds its objects without a check; here nothing is let pass."""
    return kind.model_validate_json(raw.http_response.text, strict=True)


def checked_page(raw: Any, kind: type[T]) -> list[T]:
    answer = json.loads(raw.http_response.text)
    assert answer["object"] == "list"
    return [kind.model_validate_json(json.dumps(item), strict=True) for item in answer["data"]]


def until(client: OpenAI, job_id: str, *states: str) -> FineTuningJob:
    deadline = time.monotonic() + 240
    while True:
        job = checked(client.fine_tuning.jobs.with_raw_response.retrieve(job_id), FineTuningJob)
        if state_of(job) in states:
            return job
        assert time.monotonic() < deadline, f"{job_id} is still {state_of(job)}"
        time.sleep(0.05)


def state_of(job: FineTuningJob) -> str:
    return str((job.model_extra or {})["run"]["state"])


def test_a_job_with_every_field_from_creation_to_deletion(client: OpenAI, file: FileObject) -> None:
    jobs = client.fine_tuning.jobs
    wandb: Any = {"type": "wandb", "wandb": {"project": "sums", "name": "run", "tags": ["a"]}}
    job = checked(
        jobs.with_raw_response.create(
            model=MODEL,
            training_file=file.id,
            validation_file=file.id,
            method={
                "type": "dpo",
                "dpo": {
                    "hyperparameters": {
                        "beta": "auto",
                        "n_epochs": "auto",
                        "batch_size": "auto",
                        "learning_rate_multiplier": 2,
                    }
                },
            },
            suffix="sums",
            seed=7,
            metadata={"team": "a"},
            integrations=[wandb],
            extra_body={"priority": "low"},
        ),
        FineTuningJob,
    )
    assert (job.status, job.model, job.training_file, job.validation_file) == (
        "validating_files",
        MODEL,
        file.id,
        file.id,
    )
    assert (job.seed, job.metadata, job.fine_tuned_model, job.result_files) == (7, {"team": "a"}, None, [])
    assert job.integrations is not None and job.integrations[0].wandb.project == "sums"

    _pause_and_resume(client, job.id)
    GO.touch()
    done = until(client, job.id, "succeeded", "failed")
    assert done.status == "succeeded", done.error
    assert done.finished_at is not None and done.trained_tokens is not None and done.estimated_finish is None
    assert done.method is not None and done.method.dpo is not None and done.method.dpo.hyperparameters is not None
    chosen = done.method.dpo.hyperparameters
    assert (chosen.beta, chosen.n_epochs, chosen.batch_size, chosen.learning_rate_multiplier) == (0.1, 1, 4, 2)
    assert done.fine_tuned_model is not None and done.fine_tuned_model.startswith("default/tiny-sums-")
    _lists(client, job.id)
    _checkpoints_and_models(client, done)
    _result_file(client, done)


def _pause_and_resume(client: OpenAI, job_id: str) -> None:
    jobs = client.fine_tuning.jobs
    until(client, job_id, "running")
    with pytest.raises(openai.BadRequestError, match="can't be resumed: it was not paused"):
        jobs.resume(job_id)
    assert checked(jobs.with_raw_response.pause(job_id), FineTuningJob).status == "running"
    assert until(client, job_id, "paused").status == "queued"
    assert checked(jobs.with_raw_response.resume(job_id), FineTuningJob).status in ("queued", "running")


def _lists(client: OpenAI, job_id: str) -> None:
    jobs = client.fine_tuning.jobs
    found = checked_page(jobs.with_raw_response.list(limit=5, metadata={"team": "a"}), FineTuningJob)
    assert [job.id for job in found] == [job_id]
    assert list(jobs.list(metadata={"team": "b"})) == []
    without = client.get("/fine_tuning/jobs", cast_to=object, options={"params": {"metadata": "null"}})
    assert job_id not in json.dumps(without)
    events = list(jobs.list_events(job_id, limit=2))
    assert len({event.id for event in events}) == len(events) > 6, "page by page"
    assert events[0].message == "The job has successfully completed.", "newest first"
    checked_page(jobs.with_raw_response.list_events(job_id, limit=100), FineTuningJobEvent)
    following = checked_page(jobs.with_raw_response.list_events(job_id, after=events[1].id), FineTuningJobEvent)
    assert [event.id for event in following] == [event.id for event in events[2:]]


def _checkpoints_and_models(client: OpenAI, job: FineTuningJob) -> None:
    name = job.fine_tuned_model or ""
    newest, *_ = checked_page(
        client.fine_tuning.jobs.checkpoints.with_raw_response.list(job.id), FineTuningJobCheckpoint
    )
    assert (newest.fine_tuning_job_id, newest.fine_tuned_model_checkpoint) == (
        job.id,
        f"{name}-step-{newest.step_number}",
    )
    metrics = newest.metrics
    assert (metrics.step, metrics.train_loss, metrics.valid_loss, metrics.full_valid_loss) == (
        newest.step_number,
        0.5,
        0.25,
        0.25,
    )
    steps = [checkpoint.step_number for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id, limit=1)]
    assert steps == sorted(steps, reverse=True) and len(steps) > 2
    permissions = client.fine_tuning.checkpoints.permissions
    ask = permissions.list if hasattr(permissions, "list") else permissions.retrieve  # the second is the older name
    assert ask(name).data == []
    with pytest.raises(openai.BadRequestError, match="can't be shared"):
        permissions.create(name, project_ids=["proj-x"])

    assert {MODEL, name} <= {model.id for model in checked_page(client.models.with_raw_response.list(), Model)}
    assert checked(client.models.with_raw_response.retrieve(name), Model).id == name
    user = client.fine_tuning.jobs.create(model=name, training_file=job.training_file, method={"type": "dpo"})
    with pytest.raises(openai.BadRequestError, match="in use by the unfinished job"):
        client.models.delete(name)
    client.fine_tuning.jobs.cancel(user.id)
    assert checked(client.models.with_raw_response.delete(name), ModelDeleted).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)


def _result_file(client: OpenAI, job: FineTuningJob) -> None:
    (file_id,) = job.result_files
    facts = checked(client.files.with_raw_response.retrieve(file_id), FileObject)
    assert (facts.purpose, facts.filename) == ("fine-tune-results", "step_metrics.csv")
    assert file_id in {file.id for file in client.files.list(purpose="fine-tune-results")}
    header, first, *_ = client.files.content(file_id).text.splitlines()
    assert header.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,")
    assert first.startswith("0,1.0,")
    assert len(client.files.content(file_id).content) == facts.bytes


def test_older_ways_to_say_it(client: OpenAI) -> None:
    file = client.files.create(file=("examples.jsonl", EXAMPLES), purpose="fine-tune")
    raw = client.fine_tuning.jobs.with_raw_response.create(
        model=MODEL, training_file=file.id, hyperparameters={"n_epochs": 3, "learning_rate_multiplier": "auto"}
    )
    job = checked(raw, FineTuningJob)
    assert job.method is not None and job.method.type == "supervised"
    assert job.hyperparameters.n_epochs == 3
    cancelled = checked(client.fine_tuning.jobs.with_raw_response.cancel(job.id), FineTuningJob)
    assert cancelled.status == "cancelled"


def test_errors_are_the_clients_exceptions(client: OpenAI, file: FileObject) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model=MODEL, training_file="file-none")
    assert (refused.value.param, refused.value.code) == ("training_file", "file_not_found")
    with pytest.raises(openai.BadRequestError, match="reinforcement"):
        client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method={"type": "reinforcement"})
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-none")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-dpo-wrong").models.list()


def test_a_create_whose_answer_is_lost_makes_one_job(client: OpenAI, file: FileObject) -> None:
    GO.unlink(missing_ok=True)  # the client's tries take longer than a job that nothing holds
    before = {job.id for job in client.fine_tuning.jobs.list()}
    with losing_answers(2) as (url, seen), OpenAI(base_url=url, timeout=120) as unlucky:
        job = unlucky.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method={"type": "dpo"})
    assert seen == ["0", "1", "2"], "the client's own count of its tries"
    assert {job.id for job in client.fine_tuning.jobs.list()} - before == {job.id}
    client.fine_tuning.jobs.cancel(job.id)


def test_the_async_client(file: FileObject) -> None:
    async def both_ways() -> str:
        async with AsyncOpenAI(max_retries=0) as client:
            job = await client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method={"type": "dpo"})
            return (await client.fine_tuning.jobs.cancel(job.id)).status

    assert asyncio.run(both_ways()) == "cancelled"


class losing_answers:  # noqa: N801 - reads like a function
    """A way to the service on which the answers to the first so many creations are lost, after it has done its work."""

    def __init__(self, count: int) -> None:
        left, seen = [count], list[str]()
        upstream = urlsplit(os.environ["OPENAI_BASE_URL"])

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                seen.append(self.headers.get("x-stainless-retry-count", "none"))
                body = self.rfile.read(int(self.headers["content-length"]))
                connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port)
                connection.request("POST", self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                self.close_connection = True
                if left[0]:
                    left[0] -= 1
                    return  # the connection ends without a byte
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            log_message: Callable[..., None] = lambda *_: None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._seen = seen

    def __enter__(self) -> tuple[str, list[str]]:
        threading.Thread(target=self._server.serve_forever).start()
        return f"http://127.0.0.1:{self._server.server_port}/v1", self._seen

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
