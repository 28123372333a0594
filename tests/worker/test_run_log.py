"""A log that grows without end takes no disk without end, and arrives in storage while its attempt runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from control_plane import files, jobs, removals
from control_plane.storage import DirectoryStorage, log_key
from dpo_core.run_directory import RunDirectory
from tests.worker.stubs import World
from worker import run_log
from worker.run_log import RunLog, last_lines, leave_out_middle


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def log(run: RunDirectory, tmp_path: Path) -> RunLog:
    return RunLog(DirectoryStorage(tmp_path / "storage"), "ftjob-1", 3, run)


def kept(tmp_path: Path) -> str:
    return (tmp_path / "storage" / log_key("ftjob-1", 3)).read_text()


def test_the_middle_of_a_long_log_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"line {number:03}\n" for number in range(100)))  # of 9 bytes each
    assert leave_out_middle(path, 18, 25) == 900 - 18 - 18, "a torn line goes, too"
    marker = "\n--- 864 bytes of this log were left out here ---\n"
    assert path.read_text() == f"line 000\nline 001\n{marker}line 098\nline 099\n"


def test_a_writer_goes_on_behind_the_cut(
    run: RunDirectory, log: RunLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a trainer does, which holds its log open to append."""
    monkeypatch.setattr(run_log, "HEAD_BYTES", 100)
    monkeypatch.setattr(run_log, "TAIL_BYTES", 200)
    monkeypatch.setattr(run_log, "MOST_BYTES", 600)
    program = "for n in range(3):\n input()\n for i in range(100): print(n, i, flush=True)\n print('done', flush=True)"
    with open(run.log_file, "ab") as output:
        writer = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=output, text=True)
    assert writer.stdin is not None
    for _ in range(3):
        size = run.log_file.stat().st_size
        writer.stdin.write("\n")
        writer.stdin.flush()
        while run.log_file.stat().st_size <= size or not run.log_file.read_text().endswith("done\n"):
            assert writer.poll() is None or run.log_file.read_text().endswith("done\n")
        log.bound()
        assert run.log_file.stat().st_size <= 600
    writer.stdin.close()
    assert writer.wait() == 0
    text = run.log_file.read_text()
    assert text.startswith("0 0\n0 1\n") and text.endswith("2 98\n2 99\ndone\n")
    assert text.count("bytes of this log were left out here") == 1
    log.keep()
    assert kept(tmp_path) == text


def test_a_log_is_copied_when_it_grew_and_some_time_passed(run: RunDirectory, log: RunLog, tmp_path: Path) -> None:
    log.keep()
    assert not (tmp_path / "storage" / log_key("ftjob-1", 3)).exists(), "nothing was printed"
    run.log_file.write_text("one\n")
    assert not log.to_keep, "a moment ago"
    log._next_copy = 0.0
    assert log.to_keep
    log.keep()
    log._next_copy = 0.0
    assert not log.to_keep, "it has not grown"
    assert kept(tmp_path) == "one\n"


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    assert last_lines(path) is None
    path.write_bytes(b"\xff broken\n" + b"".join(b"line %d\n" % number for number in range(100)))
    assert last_lines(path) == "\n".join(f"line {number}" for number in range(85, 100))


@pytest.mark.parametrize("deleted", ["nothing", "a file", "the job"])
def test_nothing_is_kept_of_a_job_whose_file_was_deleted_meanwhile(world: World, tmp_path: Path, deleted: str) -> None:
    job_id = world.job()
    (run := RunDirectory(tmp_path / "run")).path.mkdir()
    run.log_file.write_text("one\n")
    with world.database.transaction() as session:
        job = jobs.cancel(session, world.project_id, job_id)
    if deleted == "a file":
        with world.database.transaction() as session:
            files.delete(session, world.project_id, job.training_file_id)
    elif deleted == "the job":
        job_id = "ftjob-with-its-project"
    RunLog(world.storage, job_id, 1, run).keep_last(world.database)
    removals.carry_out(world.database, world.storage)
    assert world.storage.exists(log_key(job_id, 1)) == (deleted == "nothing")
