"""`kill -9` of one rank of a real run: it goes on from the last complete checkpoint and ends with the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dpo_core.run_directory import RunDirectory
from tests.conftest import Servers
from tests.makers import write_preference_file
from tests.service import Service, poll_until, running_service

SPEC = {
    "learning_rate": 1e-3,
    "batch_size": 8,
    "max_steps": 12,
    "max_length": 128,
    "validation_fraction": 0.0,
    "checkpoint_steps": 4,
    "zero_stage": 2,
}


@pytest.fixture
def running(servers: Servers, migrated_template: str, tmp_path: Path) -> Iterator[Service]:
    with running_service(servers, migrated_template, tmp_path, "faults") as running:
        yield running


def freeze_after_first_checkpoint(running: Service, job_id: str) -> list[psutil.Process]:
    """Stops both ranks as soon as step 4 is on disk, and waits until it is published."""

    def on_disk() -> bool:
        return any(running.runs.glob(f"{job_id}/*/checkpoints/step-4/manifest.json"))

    poll_until(on_disk, "the first checkpoint is on disk", every=0.005)
    (folder,) = running.runs.glob(f"{job_id}/*/checkpoints")
    ranks = RunDirectory(folder.parent).recorded_processes()
    for rank in ranks:
        rank.suspend()
    poll_until(lambda: 4 in running.checkpoint_steps(job_id), "the first checkpoint is published")
    return ranks


def test_kill_9_of_a_rank_changes_nothing_but_the_time_it_takes(running: Service, tmp_path: Path) -> None:
    pairs = running.upload(write_preference_file(tmp_path / "pairs.jsonl", 40))
    job_id = running.start_job("base/tiny", pairs, "dpo", **SPEC)
    one, other = freeze_after_first_checkpoint(running, job_id)
    assert running.checkpoint_steps(job_id) == [4], "the kill comes in the middle of the run"
    one.kill()
    other.resume()
    model_id = running.succeeded(job_id)
    running.nothing_left()

    undisturbed = running.succeeded(running.start_job("base/tiny", pairs, "dpo", **SPEC))

    codes = [event.message for event in running.openai.fine_tuning.jobs.list_events(job_id, limit=100)]
    assert any("goes on from its last checkpoint" in message for message in codes)
    killed, whole = running.download(model_id), running.download(undisturbed)
    assert killed["model.safetensors"] == whole["model.safetensors"]
    assert [line["step"] for line in running.metrics(job_id)] == list(range(12))
