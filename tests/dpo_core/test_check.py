"""`python -m dpo_core.check`: the run directory's contract."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dpo_core.data.file_report import FileReport
from dpo_core.questions import CheckSpec, FileQuestion
from dpo_core.run_directory import RunDirectory
from tests.makers import write_preference_file


def asked(folder: Path, question: FileQuestion) -> RunDirectory:
    directory = RunDirectory(folder / "run")
    directory.create(CheckSpec(question=question))
    return directory


def test_it_answers_and_loads_no_torch(tmp_path: Path) -> None:
    directory = asked(tmp_path, FileQuestion(file=write_preference_file(tmp_path / "a.jsonl", 20)))
    program = (
        "import sys; from dpo_core import program; from dpo_core.check import check; "
        "code = program.main('check', check, sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'deepspeed', 'peft'} & sys.modules.keys(); sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", program, str(directory.path)], check=True, timeout=60)
    status = directory.status()
    assert status is not None and status.state == "succeeded"
    assert (directory.processes / "check.json").exists()
    assert FileReport.model_validate_json(directory.answer_file.read_bytes()).pairs == 20
    assert subprocess.run([sys.executable, "-m", "dpo_core.check"], check=False, timeout=60).returncode == 2


def test_a_file_that_is_not_there_is_nobodys_answer(tmp_path: Path) -> None:
    directory = asked(tmp_path, FileQuestion(file=tmp_path / "none.jsonl"))
    done = subprocess.run([sys.executable, "-m", "dpo_core.check", str(directory.path)], check=False, timeout=60)
    status = directory.status()
    assert done.returncode == 1
    assert status is not None and status.failure is not None
    assert (status.state, status.failure.kind) == ("failed", "infrastructure")
    assert not directory.answer_file.exists()


def test_sigterm_stops_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")  # nobody writes to it, so reading it lasts
    directory = asked(tmp_path, FileQuestion(file=tmp_path / "a.jsonl"))
    process = subprocess.Popen([sys.executable, "-m", "dpo_core.check", str(directory.path)])
    deadline = time.monotonic() + 60
    while directory.status() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    status = directory.status()
    assert status is not None and status.state == "stopped"
