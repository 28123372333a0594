"""The commands that need only a database, and what they say when something is missing."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from control_plane import keys
from control_plane.database import Database
from control_plane.errors import Unauthenticated
from tests.cli.running import dpo
from tests.control_plane.rows import PROJECT, add_model, add_project
from tests.makers import make_tiny_model


def test_keys_are_made_listed_and_revoked(database_url: str, database: Database) -> None:
    made = dpo("keys", "create", "laptop", DPO_DATABASE_URL=database_url)
    secret = made.stdout.strip()
    with database.transaction() as session:
        key = keys.authenticate(session, secret)

    listed = dpo("keys", "list", DPO_DATABASE_URL=database_url).stdout.splitlines()
    assert listed[1].split()[:2] == [key.id, "laptop"]
    assert listed[1].endswith("valid")
    assert secret not in "".join(listed)

    assert dpo("keys", "revoke", key.id, DPO_DATABASE_URL=database_url).stdout == f"revoked {key.id} (laptop)\n"
    with database.transaction() as session, pytest.raises(Unauthenticated):
        keys.authenticate(session, secret)


def test_keys_with_scopes_and_an_end(database_url: str, database: Database) -> None:
    narrow = ("keys", "create", "ci", "--scope", "files:write", "--scope", "jobs:write", "--expires", "90d")
    secret = dpo(*narrow, DPO_DATABASE_URL=database_url).stdout.strip()
    with database.transaction() as session:
        key = keys.authenticate(session, secret)
        assert key.scopes == ["files:write", "jobs:write"]
        assert key.expires_at is not None
        assert abs((key.expires_at - key.created_at).total_seconds() - 90 * 86400) < 60
    wrong = dpo("keys", "create", "ci", "--expires", "soon", DPO_DATABASE_URL=database_url)
    assert wrong.returncode == 2
    assert "12h, 90d or 4w" in wrong.stderr


def test_projects_are_made_limited_listed_and_deleted(database_url: str) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return dpo(*words, DPO_DATABASE_URL=database_url)

    wrong = run("keys", "create", "k", "--project", "team-b")
    assert (wrong.returncode, "dpo projects create team-b" in wrong.stderr) == (1, True)
    made = run("projects", "create", "team-b", "--max-bytes", "2G", "--max-gpus", "4").stdout
    assert made.startswith("team-b (proj-")
    assert run("projects", "list").stdout.splitlines()[1].split()[2:] == ["0", "2,147,483,648", "0", "-", "0", "4"]
    assert run("projects", "delete", "team-b", "--yes").stdout.startswith("deleted team-b (proj-")
    actions = [line.split()[3] for line in run("audit").stdout.splitlines()[1:]]
    assert actions == ["project.deleted", "project.limits_changed", "project.created"]


def test_models_are_added_listed_and_removed(database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    make_tiny_model(folder)
    assert dpo("models", "add", folder, "--name", "small", DPO_DATABASE_URL=database_url).stdout == "base/small\n"
    listed = dpo("models", "list", DPO_DATABASE_URL=database_url).stdout.splitlines()
    assert [line.split() for line in listed[1:]] == [["base/small", "base", "full", str(folder)]]
    dpo("models", "remove", "base/small", DPO_DATABASE_URL=database_url)
    assert len(dpo("models", "list", DPO_DATABASE_URL=database_url).stdout.splitlines()) == 1


def test_of_a_job_the_newest_model_is_listed(database_url: str, database: Database) -> None:
    checkpoints = [
        ("default/a-step-1", "ftjob-a", 1),
        ("default/a-step-2", "ftjob-a", 2),
        ("default/a", "ftjob-a", 2),
        ("default/b-step-1", "ftjob-b", 1),
        ("default/b-best", "ftjob-b", 1),
        ("default/b-step-2", "ftjob-b", 2),
    ]
    made = {"project_id": PROJECT, "kind": "checkpoint", "path": None}
    with database.transaction() as session:
        add_project(session)
        add_model(session, created_at=datetime(2026, 1, 1, tzinfo=UTC))
        for minute, (name, job_id, step) in enumerate(checkpoints):
            moment = datetime(2026, 1, 2, 0, minute, tzinfo=UTC)
            add_model(session, name, **made, job_id=job_id, step=step, created_at=moment)

    def listed(*options: str) -> list[str]:
        done = dpo("models", "list", *options, DPO_DATABASE_URL=database_url)
        assert ("with --all, checkpoints on the way: 3\n" in done.stderr) == (not options)
        return [line.split()[0] for line in done.stdout.splitlines()[1:]]

    assert listed() == ["base/tiny", "default/b-step-2", "default/b-best", "default/a"]
    assert listed("--all") == ["base/tiny", *(name for name, _, _ in reversed(checkpoints))]


def test_a_refusal_is_one_line(database_url: str, tmp_path: Path) -> None:
    refused = dpo("models", "add", tmp_path / "nothing", DPO_DATABASE_URL=database_url)
    assert refused.returncode == 1
    assert refused.stderr.startswith("dpo: ")
    assert refused.stderr.count("\n") == 1


def test_missing_and_wrong_settings_are_named() -> None:
    nothing = dpo("worker")
    assert nothing.returncode == 1
    assert nothing.stderr == (
        "dpo: not set in the environment: DPO_DATABASE_URL, DPO_REDIS_URL, DPO_STORAGE_URL. "
        "`dpo up` needs none of them\n"
    )
    wrong = dpo("api", DPO_DATABASE_URL="x", DPO_REDIS_URL="x", DPO_STORAGE_URL="x", DPO_PORT="high")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("dpo: wrong in the environment: DPO_PORT: ")
    assert wrong.stderr.count("\n") == 1


def test_a_service_that_is_down_is_said_to_be(tmp_path: Path) -> None:
    nowhere = dpo("keys", "list", "--data", tmp_path / "nowhere")
    assert "there is no data folder" in nowhere.stderr
    down = dpo("keys", "list", "--data", tmp_path)
    assert down.stderr.startswith(
        f"dpo: no database answers at {tmp_path}; start the service with `dpo up --data {tmp_path}`"
    )
    assert list(tmp_path.iterdir()) == []


def test_migrate_can_be_repeated(database_url: str) -> None:
    for _ in range(2):
        assert dpo("migrate", DPO_DATABASE_URL=database_url).stdout == "the schema is up to date\n"
