"""`dpo jobs`, `cancel`, `pause`, `resume`, and what `dpo submit` says around a job; `dpo --version`."""

from __future__ import annotations

import tomllib
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from openai import OpenAI

from control_plane.database import Database
from control_plane.settings import Settings
from control_plane.storage import log_key, open_storage
from tests.cli.conftest import Dpo
from tests.cli.work import STEPS, claim, validated, whole_job
from tests.cli.work import refused as fail_validation
from tests.makers import write_rows

ROOT = Path(__file__).parents[2]


def test_jobs_are_listed_newest_first_and_cancelled(
    job_id: str, pairs: Path, dpo: Dpo, database: Database, settings: Settings
) -> None:
    def rows(*options: object) -> list[list[str]]:
        titles, *lines = dpo("jobs", *options).stdout.splitlines()
        assert titles.split() == ["job", "status", "state", "steps", "created", "from", "model"]
        made = [datetime.fromisoformat(line.split()[4]) for line in lines]
        assert made == sorted(made, reverse=True)
        assert all(abs(datetime.now().astimezone() - moment) < timedelta(minutes=10) for moment in made)
        return [cells[:4] + cells[5:] for cells in map(str.split, lines)]

    whole_job(database, settings)
    waiting = dpo("submit", pairs, "--model", "base/tiny").stdout.strip()
    new, old = rows()
    assert new == [waiting, "validating_files", "validating", "0/?", "base/tiny"]
    assert old[:5] == [job_id, "succeeded", "succeeded", f"{STEPS}/{STEPS}", "base/tiny"]
    assert old[5].startswith("default/tiny")
    assert rows("--limit", 1) == [new]

    assert dpo("cancel", waiting).stdout == f"cancelled {waiting}\n"
    assert rows("--limit", 1)[0][1:3] == ["cancelled", "cancelled"]
    for wrong, said in ((job_id, "is over (succeeded)"), (waiting, "is over (cancelled)"), ("ftjob-no", "no job")):
        refused = dpo("cancel", wrong)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
        assert said in refused.stderr


def test_a_failed_job_is_listed_with_its_reason(job_id: str, dpo: Dpo, database: Database) -> None:
    fail_validation(database, "Line 3 is no JSON.")
    assert " failed  failed (invalid_training_file)  " in dpo("jobs").stdout


def test_a_job_whose_worker_is_not_heard_of_is_listed_so(job_id: str, dpo: Dpo, database: Database) -> None:
    claim(database, lease_seconds=0.001)
    assert " validating (not heard of)  " in dpo("jobs").stdout


def test_a_job_is_paused_and_resumed(job_id: str, dpo: Dpo, database: Database) -> None:
    validated(database)
    paused = dpo("pause", job_id)
    assert paused.stdout.startswith(f"paused {job_id}; to go on: ") and f" resume {job_id}" in paused.stdout
    assert dpo("jobs").stdout.splitlines()[1].split()[1:3] == ["queued", "paused"]
    assert dpo("resume", job_id).stdout == f"resumed {job_id}\n"
    claim(database)
    assert dpo("pause", job_id).stdout.startswith(f"a checkpoint is made, then it is paused: {job_id}")
    refused = dpo("resume", job_id)
    assert refused.returncode == 1 and "still makes its checkpoint" in refused.stderr


def test_the_logs_of_a_job_are_printed(job_id: str, dpo: Dpo, database: Database, settings: Settings) -> None:
    assert dpo("logs", job_id).stdout == ""
    held = claim(database)
    with open_storage(settings.storage_url).writer(log_key(job_id, held.fence)) as sink:
        sink.write(b"[odd] 100 %\n")
    printed = dpo("logs", job_id)
    assert printed.returncode == 0
    assert printed.stdout.startswith("=== attempt 1: ") and printed.stdout.endswith("===\n[odd] 100 %\n\n")
    refused = dpo("logs", job_id, "--attempt", 2)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "none with the number 2" in refused.stderr


def test_a_new_job_comes_with_its_warnings_and_the_ways_on(base: str, pairs: Path, dpo: Dpo) -> None:
    done = dpo("submit", pairs, "--model", base, "--gpus", 64)
    job_id = done.stdout.strip()
    *_, warning, watch, cancel = done.stderr.splitlines()
    assert " warning: " in warning and "64" in warning
    assert watch.startswith("next: ") and watch.endswith(f" watch {job_id}")
    assert cancel.startswith("or stop it: ") and cancel.endswith(f" cancel {job_id}")


@pytest.mark.parametrize("wrong", ["base/tyni", "bass/tiny"])
def test_a_misspelt_model_gets_a_suggestion(base: str, pairs: Path, dpo: Dpo, tmp_path: Path, wrong: str) -> None:
    for done in (dpo("submit", pairs, "--model", wrong), dpo("download", wrong, tmp_path / "out")):
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert f'There is no model {wrong!r} here. Did you mean "{base}"? `dpo models list` ' in done.stderr


def test_bad_rows_may_be_skipped(client: OpenAI, base: str, pairs: Path, dpo: Dpo) -> None:
    job_id = dpo("submit", pairs, "--model", base, "--skip-bad-rows", 0.1).stdout.strip()
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.run["training"]["skip_bad_rows"] == 0.1  # type: ignore[attr-defined]
    refused = dpo("submit", pairs, "--model", base, "--skip-bad-rows", 5)
    assert refused.returncode == 1 and "skip_bad_rows" in refused.stderr


def test_a_file_may_have_other_names_for_its_fields(client: OpenAI, base: str, dpo: Dpo, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "f.jsonl", [{"frage": "q", "chosen": "a", "rejected": "b"}])
    job_id = dpo("submit", file, "--model", base, "--columns", "prompt=frage").stdout.strip()
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.run["training"]["columns"] == {"prompt": "frage"}  # type: ignore[attr-defined]
    refused = dpo("submit", file, "--model", base, "--columns", "promt=frage")
    assert refused.returncode == 1 and "Did you mean `prompt`?" in refused.stderr


def test_the_version_is_the_projects(dpo: Dpo) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert dpo("--version").stdout == f"{project['version']}\n"
