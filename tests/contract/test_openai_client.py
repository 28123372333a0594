"""The unmodified openai client does all of it. The worker's part is played by its own reporting functions."""

from __future__ import annotations

import asyncio
import io
import tarfile
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, HttpxBinaryResponseContent, OpenAI
from openai.types import FileObject, Model
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from control_plane import leases, models, publication, results
from control_plane.database import Database
from control_plane.leases import Claim
from control_plane.settings import Settings
from control_plane.storage import checkpoint_prefix, open_storage
from dpo_core.best import Best
from dpo_core.run_directory import Manifest
from dpo_core.spec import TrainingSpec
from tests.api.conftest import Api
from tests.control_plane.model_folders import make_folder
from tests.makers import write_preference_file

STEPS = 4


@pytest.fixture
def base(database: Database, tmp_path: Path) -> str:
    with database.transaction() as session:
        return models.register_base(session, make_folder(tmp_path / "tiny")).id


@pytest.fixture
def file(client: OpenAI, tmp_path: Path) -> FileObject:
    path = write_preference_file(tmp_path / "pairs.jsonl", 20)
    with open(path, "rb") as stream:
        return client.files.create(file=stream, purpose="fine-tune")


def claim_next(database: Database) -> Claim:
    with database.transaction() as session:
        claim = leases.claim(session, worker_id="w", free=8, total=8, lease_seconds=60)
    assert claim is not None
    return claim


def work(database: Database, settings: Settings) -> None:
    """What a worker reports of a whole job: validation, two steps between checkpoints, the end."""
    resolved = TrainingSpec(batch_size=16, epochs=2, beta=0.1, learning_rate=1e-6).model_dump(mode="json")
    with database.transaction() as session:
        claim = leases.claim(session, worker_id="w", free=8, total=8, lease_seconds=60)
        assert claim is not None
        results.finish_validation(session, claim, {"training": resolved, "values": {}, "total_steps": STEPS})
    claim = claim_next(database)
    storage = open_storage(settings.storage_url)
    for step in range(1, STEPS + 1):
        line = {"split": "train", "step": step, "values": {"loss": 1 / step}}
        with database.transaction() as session:
            results.record(session, claim, metrics=[line], step=step, total_steps=STEPS)
        if step % 2 == 0:
            prefix = checkpoint_prefix(claim.job_id, claim.fence, step)
            with storage.writer(f"{prefix}/model/config.json") as sink:
                sink.write(b'{"step": %d}' % step)
            metrics = {"train/loss": 1 / step, "validation/loss": 2 / step, "train/rewards/margins": 0.5}
            manifest = Manifest(
                step=step,
                kind="full",
                files=[],
                metrics=metrics,
                trained_tokens=100 * step,
                final=step == STEPS,
                best=Best(step=2, metric="rewards/margins", value=0.75),
            )
            with database.transaction() as session:
                publication.publish_checkpoint(session, claim, manifest, prefix)
    with database.transaction() as session:
        results.succeed(session, claim)


def test_a_job_from_upload_to_weights(
    client: OpenAI, database: Database, settings: Settings, base: str, file: FileObject
) -> None:
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=file.id,
        validation_file=file.id,
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": 2, "batch_size": "auto"}}},
        suffix="sums",
        seed=1,
        metadata={"team": "a"},
        extra_body={"training": {"learning_rate": 1e-6}, "resources": {"gpus": 2}, "priority": "low"},
    )
    assert job.status == "validating_files"
    work(database, settings)
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded"
    assert (done.trained_tokens, done.error, done.finished_at is not None) == (100 * STEPS, None, True)
    assert (done.hyperparameters.n_epochs, done.hyperparameters.batch_size) == (2, 16)
    assert done.method is not None and done.method.dpo is not None and done.method.dpo.hyperparameters is not None
    assert done.method.dpo.hyperparameters.beta == 0.1
    assert done.run["progress"] == {"step": STEPS, "total_steps": STEPS}  # type: ignore[attr-defined]
    assert done.run["attempt"] == 1  # type: ignore[attr-defined]
    best = {"model": f"{done.fine_tuned_model}-best", "step": 2, "metric": "rewards/margins", "value": 0.75}
    assert done.run["best"] == best  # type: ignore[attr-defined]
    assert done.run["resolved"]["training"]["learning_rate"] == 1e-6  # type: ignore[attr-defined]

    assert done.fine_tuned_model is not None and done.fine_tuned_model.startswith("default/tiny-sums-")
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [4, 2]
    assert checkpoints[0].fine_tuned_model_checkpoint == f"{done.fine_tuned_model}-step-4"
    assert (checkpoints[0].metrics.train_loss, checkpoints[0].metrics.full_valid_loss) == (0.25, 0.5)
    for model_id in (done.fine_tuned_model, checkpoints[1].fine_tuned_model_checkpoint, best["model"]):
        assert client.models.retrieve(model_id).id == model_id
    weights = client.get(f"/models/{done.fine_tuned_model}/archive", cast_to=HttpxBinaryResponseContent)
    with tarfile.open(fileobj=io.BytesIO(weights.content)) as archive:
        assert archive.getnames() == [f"{done.fine_tuned_model.partition('/')[2]}/config.json"]

    following = client.fine_tuning.jobs.create(model=done.fine_tuned_model, training_file=file.id)
    assert client.fine_tuning.jobs.cancel(following.id).status == "cancelled"
    assert [known.id for known in client.fine_tuning.jobs.list(limit=1)] == [following.id, job.id]
    assert [known.id for known in client.fine_tuning.jobs.list(metadata={"team": "a"})] == [job.id]
    assert client.models.delete(done.fine_tuned_model).deleted
    assert client.files.delete(file.id).deleted


def test_events_page_by_page(
    client: OpenAI, database: Database, settings: Settings, base: str, file: FileObject
) -> None:
    job = client.fine_tuning.jobs.create(model=base, training_file=file.id, method={"type": "dpo"})
    work(database, settings)
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    assert len({event.id for event in events}) == len(events) >= 6
    assert [event.data["code"] for event in events][::-1][:1] == ["job_created"]  # type: ignore[index]
    assert events[0].message == "The job has successfully completed."


def test_every_answer_is_what_the_clients_types_say(
    client: OpenAI, database: Database, settings: Settings, base: str, file: FileObject
) -> None:
    """The client builds its objects without checking them; here they are checked."""
    job = client.fine_tuning.jobs.create(model=base, training_file=file.id)
    FineTuningJob.model_validate(job.model_dump(), strict=True)
    work(database, settings)
    FileObject.model_validate(file.model_dump(), strict=True)
    FineTuningJob.model_validate(client.fine_tuning.jobs.retrieve(job.id).model_dump(), strict=True)
    for event in client.fine_tuning.jobs.list_events(job.id):
        FineTuningJobEvent.model_validate(event.model_dump(), strict=True)
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
        FineTuningJobCheckpoint.model_validate(checkpoint.model_dump(), strict=True)
    for model in client.models.list():
        Model.model_validate(model.model_dump(), strict=True)


def test_openais_older_hyperparameters(client: OpenAI, base: str, file: FileObject) -> None:
    job = client.fine_tuning.jobs.create(
        model=base, training_file=file.id, hyperparameters={"n_epochs": 3, "learning_rate_multiplier": 2}
    )
    assert job.method is not None and job.method.type == "supervised"
    assert (job.hyperparameters.n_epochs, job.hyperparameters.learning_rate_multiplier) == (3, 2)


def test_errors_arrive_as_the_clients_exceptions(client: OpenAI, base: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model=base, training_file="file-none")
    assert (refused.value.param, refused.value.code) == ("training_file", "file_not_found")
    assert refused.value.request_id is not None and refused.value.request_id.startswith("req-")
    with pytest.raises(openai.AuthenticationError, match="dpo keys create"):
        client.with_options(api_key="sk-dpo-wrong").files.list()
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-none")


async def _both_ways(api: Api, secret: str, rows: bytes) -> bytes:
    async with AsyncOpenAI(base_url=f"{api.url}/v1", api_key=secret, max_retries=0) as client:
        file = await client.files.create(file=("pairs.jsonl", rows), purpose="fine-tune")
        return (await client.files.content(file.id)).content


def test_the_async_client(api: Api, secret: str) -> None:
    assert asyncio.run(_both_ways(api, secret, b"{}\n")) == b"{}\n"
