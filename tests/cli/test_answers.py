"""`dpo report` and `dpo submit --dry-run`, with a real worker behind the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import APIConnectionError, OpenAI
from rich.console import Console

from cli.errors import CommandFailed
from cli.submit import _send, _uploaded
from control_plane import models
from control_plane.database import Database
from control_plane.settings import Settings
from tests.cli.conftest import Dpo
from tests.makers import write_rows
from tests.worker.stubs import supervisor
from worker.launch import Programs


@pytest.fixture
def working(settings: Settings) -> Iterator[None]:
    quick = {"heartbeat_seconds": 0.2, "poll_seconds": 0.2, "cpu_slots": 0}
    with supervisor(settings.model_copy(update=quick), Programs()):
        yield


@pytest.fixture
def trainable(database: Database, tiny_model: Path) -> str:
    with database.transaction() as session:
        return models.register_base(session, tiny_model, "trainable").id


def single_spaced(text: str) -> str:
    return " ".join(text.split())


def test_a_report_in_words(client: OpenAI, working: None, dpo: Dpo, tmp_path: Path) -> None:
    pair = {"prompt": "What is 1+1?", "chosen": "It is 2.", "rejected": "3"}
    path = write_rows(tmp_path / "a.jsonl", [pair, pair, pair | {"chosen": " "}])
    done = dpo("report", client.files.create(file=path, purpose="fine-tune").id)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "JSONL; a prompt with two answers: 2 rows"
    assert lines[1] == "3 rows: 2 pairs, 0 supervised examples, 1 bad"
    assert lines[2].startswith("1 row: empty answer (line 3). The answer in `chosen` is empty.")
    assert lines[3].startswith("1 row (line 2): Line 2 repeats an earlier row (line 1)")
    assert "characters of the chosen answer 8.0 8 8 8 8" in single_spaced(done.stdout)
    assert "the longer answer is the chosen one in 100.0% of 2 pairs (95 % interval 34.2% to 100.0%)" in done.stdout


def test_a_report_with_a_model_has_its_tokens(
    client: OpenAI, working: None, trainable: str, pairs: Path, dpo: Dpo
) -> None:
    done = dpo("report", client.files.create(file=pairs, purpose="fine-tune").id, "--model", trainable)
    assert done.returncode == 0, done.stderr
    assert "tokens of a row" in done.stdout
    assert "max_length would be 2,048 (the smallest power of two" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("longer than that: 0 rows of 20")


def test_a_report_by_the_files_own_names(client: OpenAI, working: None, dpo: Dpo, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"frage": "q", "chosen": "a", "rejected": "b"}])
    done = dpo("report", client.files.create(file=path, purpose="fine-tune").id, "--columns", "prompt=frage")
    assert done.stdout.startswith("JSONL; a prompt with two answers: 1 row\n1 row: 1 pairs, ")


def test_a_report_of_a_file_that_was_not_uploaded(dpo: Dpo, tmp_path: Path) -> None:
    (path := tmp_path / "pairs.jsonl").write_text("{}")
    done = dpo("report", path)
    assert done.returncode == 1 and done.stdout == ""
    assert f"{path} is a file here; " in done.stderr and f" files add {path}` prints one" in done.stderr


def test_a_report_of_nothing(dpo: Dpo) -> None:
    done = dpo("report", "file-none")
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no file 'file-none'" in done.stderr


def test_a_dry_run_prints_tables_and_leaves_nothing(
    client: OpenAI, working: None, trainable: str, pairs: Path, dpo: Dpo
) -> None:
    done = dpo("submit", pairs, "--model", trainable, "--dry-run", "--epochs", 3)
    assert done.returncode == 0, done.stderr
    assert "epochs 3 given in the spec" in single_spaced(done.stdout)
    assert "20 rows to train on, 0 to validate with; 6 steps" in done.stdout
    assert "* 0 none" in single_spaced(done.stdout)
    assert "disk: 6 checkpoints of" in done.stdout
    assert "time: unknown: no job of this project has trained all weights of base/trainable" in done.stdout
    assert "warning: Nothing is held out to validate with" in done.stdout, "as the job's own event would say"
    assert client.fine_tuning.jobs.list().data == []
    assert client.files.list().data == []


def test_a_dry_run_that_is_refused_leaves_nothing(
    client: OpenAI, working: None, trainable: str, pairs: Path, dpo: Dpo
) -> None:
    done = dpo("submit", pairs, "--model", trainable, "--dry-run", "--batch-size", 1000)
    assert (done.returncode, done.stdout) == (1, "")
    assert "batch_size 1000 is more than the 20 rows" in done.stderr
    assert client.files.list().data == []


def test_a_dry_run_leaves_the_specs_own_file(
    client: OpenAI, working: None, trainable: str, pairs: Path, dpo: Dpo
) -> None:
    held_out = client.files.create(file=pairs, purpose="fine-tune").id
    spec = pairs.with_name("job.json")
    spec.write_text(json.dumps({"validation_file": held_out}))
    done = dpo("submit", pairs, "--model", trainable, "--spec", spec, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert client.files.retrieve(held_out).id == held_out
    assert [file.id for file in client.files.list()] == [held_out]


def test_files_of_an_interrupted_dry_run_are_removed_and_those_of_a_lost_answer_stay(
    client: OpenAI, base: str, pairs: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    console = Console(quiet=True)
    with pytest.raises(KeyboardInterrupt), _uploaded(pairs, pairs, {"model": base}, console):
        assert len(client.files.list().data) == 2
        raise KeyboardInterrupt
    assert client.files.list().data == []

    def lost(_: OpenAI, __: dict[str, Any]) -> str:
        raise APIConnectionError(request=httpx2.Request("POST", "http://service"))

    with pytest.raises(CommandFailed, match="nothing answers"):
        _send(pairs, None, {"model": base}, lost, console)
    assert len(client.files.list().data) == 1
