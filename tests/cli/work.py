"""The worker's part of a job, played by its own reporting functions: the commands see what a real one would report."""

from __future__ import annotations

import hashlib

from control_plane import leases, publication, result_files, results
from control_plane.database import Database
from control_plane.leases import Claim
from control_plane.settings import Settings
from control_plane.storage import checkpoint_prefix, file_key, open_storage
from dpo_core.run_directory import CHECKSUMS, Failure, Manifest, ManifestFile
from dpo_core.spec import TrainingSpec

STEPS = 20
NUMBERS = b"step,train_loss\n0,1.0\n"
CONTENT = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 5000}


def claim(database: Database, lease_seconds: float = 600) -> Claim:
    with database.transaction() as session:
        found = leases.claim(session, worker_id="w", free=8, total=8, lease_seconds=lease_seconds)
    assert found is not None
    return found


def validated(database: Database) -> None:
    held = claim(database)
    resolved = TrainingSpec(batch_size=16, epochs=2, beta=0.1, learning_rate=1e-6).model_dump(mode="json")
    with database.transaction() as session:
        results.finish_validation(session, held, {"training": resolved, "values": {}, "total_steps": STEPS})


def refused(database: Database, message: str) -> None:
    held = claim(database)
    failure = Failure(kind="user", code="invalid_training_file", message=message, line=3)
    with database.transaction() as session:
        results.fail(session, held, failure, max_attempts=1)


def trained(database: Database, held: Claim, steps: range) -> None:
    """Loss falls from 1, by 0.05 a step; so does the chosen tokens' log-probability from 0, by 0.1."""
    for step in steps:
        values = {
            "loss": 1 - step / 20,
            "rewards/margins": step / 10,
            "rewards/accuracies": 0.75,
            "logps/chosen_per_token": -step / 10,
        }
        metrics = [{"split": "train", "step": step, "values": values}]
        if step % 10 == 0:
            metrics.append({"split": "validation", "step": step, "values": values})
        event = [({"level": "warn", "code": "odd", "message": "[b] is odd"}, 1)] if step == 0 else []
        with database.transaction() as session:
            results.record(session, held, metrics=metrics, events=event, step=step + 1, total_steps=STEPS)


def published(database: Database, settings: Settings, held: Claim) -> None:
    """The final checkpoint, the result file, and the job's end."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    files = [
        ManifestFile(path=f"model/{name}", bytes=len(content), sha256=digests[name])
        for name, content in CONTENT.items()
    ]
    manifest = Manifest(step=STEPS, kind="full", files=files, final=True)
    prefix = checkpoint_prefix(held.job_id, held.fence, STEPS)
    storage = open_storage(settings.storage_url)
    for name, content in {**CONTENT, CHECKSUMS: manifest.checksums().encode()}.items():
        with storage.writer(f"{prefix}/model/{name}") as sink:
            sink.write(content)
    file_id, digest = f"file-{held.job_id}", hashlib.sha256(NUMBERS).hexdigest()
    with storage.writer(file_key(file_id)) as sink:
        sink.write(NUMBERS)
    with database.transaction() as session:
        publication.publish_checkpoint(session, held, manifest, prefix)
        result_files.attach(session, held, file_id=file_id, bytes=len(NUMBERS), sha256=digest)
        results.succeed(session, held)


def whole_job(database: Database, settings: Settings) -> None:
    validated(database)
    held = claim(database)
    trained(database, held, range(STEPS))
    published(database, settings, held)
