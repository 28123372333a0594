from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo_core.run_directory import (
    MANIFEST,
    Event,
    Failure,
    Manifest,
    RunDirectory,
    Status,
    read_lines,
    sha256_of,
    write_whole,
)
from dpo_core.spec import ModelSource, RunSpec, TrainingSpec


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create(
        RunSpec(
            job_id="job",
            fence=3,
            training=TrainingSpec(),
            model=ModelSource(id="m", path=tmp_path),
            training_file=tmp_path / "t.jsonl",
        )
    )
    return directory


def test_the_spec_comes_back(directory: RunDirectory) -> None:
    assert directory.spec().fence == 3
    assert directory.spec().training == TrainingSpec()


def test_writing_whole_leaves_nothing_aside(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_whole(tmp_path / "file", text)
        assert (tmp_path / "file").read_text() == text
    assert os.listdir(tmp_path) == ["file"]
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"two").hexdigest()


def test_status(directory: RunDirectory) -> None:
    assert directory.status() is None
    failed = Status(state="failed", step=4, failure=Failure(kind="user", code="c", message="m", line=2))
    directory.write_status(failed)
    assert directory.status() == failed


def test_the_lease_is_a_point_on_the_monotonic_clock(directory: RunDirectory) -> None:
    assert directory.lease_deadline() is None
    before = time.monotonic()
    directory.renew_lease(30)
    deadline = directory.lease_deadline()
    assert deadline is not None
    assert before + 30 <= deadline <= time.monotonic() + 30


def test_growing_files_are_read_on_from_an_offset(directory: RunDirectory) -> None:
    assert list(read_lines(directory.metrics_file, 0)) == []
    directory.append_metrics("train", 0, {"loss": 0.5})
    directory.append_metrics("train", 1, {"loss": 0.25})
    with open(directory.metrics_file, "a") as file:
        file.write('{"half": ')
    (first, offset), (second, end) = read_lines(directory.metrics_file, 0)
    assert (first["split"], first["step"], first["values"]) == ("train", 0, {"loss": 0.5})
    assert [record for record, _ in read_lines(directory.metrics_file, offset)] == [second]
    assert list(read_lines(directory.metrics_file, end)) == []


def test_a_number_that_json_lacks_is_refused(directory: RunDirectory) -> None:
    with pytest.raises(ValueError, match="JSON"):
        directory.append_metrics("train", 0, {"loss": float("nan")})


def test_events_keep_their_fields(directory: RunDirectory) -> None:
    event = Event(level="warn", code="c", message="größer", data={"count": 1})
    directory.append_event(event)
    ((record, _),) = read_lines(directory.events_file, 0)
    assert Event.model_validate(record) == event


def test_a_checkpoint_exists_once_its_manifest_does(directory: RunDirectory) -> None:
    for step in (20, 3, 100):
        (directory.checkpoints / f"step-{step}").mkdir()
    assert directory.complete_checkpoints() == []
    for step in (20, 3):
        manifest = Manifest(step=step, kind="full", files=[])
        write_whole(directory.checkpoints / f"step-{step}" / MANIFEST, manifest.model_dump_json())
    assert [manifest.step for _, manifest in directory.complete_checkpoints()] == [3, 20]


def test_recorded_processes_are_those_that_live(directory: RunDirectory) -> None:
    directory.record_process("0")
    assert [process.pid for process in directory.recorded_processes()] == [os.getpid()]
    # a process that ended, and one whose pid belongs to somebody else by now
    program = "import sys; from pathlib import Path; from dpo_core.run_directory import RunDirectory; "
    program += "RunDirectory(Path(sys.argv[1])).record_process('1')"
    subprocess.run([sys.executable, "-c", program, str(directory.path)], check=True, timeout=60)
    write_whole(directory.processes / "2.json", f'{{"pid": {os.getpid()}, "started": 1.0}}')
    assert [process.pid for process in directory.recorded_processes()] == [os.getpid()]
