"""After a deletion nothing of it is left: neither in storage, nor in the database, nor in the run directories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import psycopg
import pytest

from control_plane import keys, projects
from control_plane.database import Database
from control_plane.project_removal import delete_project
from tests.service import Service, poll_until

WORD = "zanzibarische"
"""In every row of the file, and nowhere else."""

SPEC = {"learning_rate": 1e-3, "batch_size": 8, "max_steps": 2, "max_length": 128, "checkpoint_steps": 1}


@pytest.fixture
def theirs(running: Service) -> Iterator[Service]:
    """The service as a project of its own sees it; its models' names would tell otherwise what is whose."""
    database = Database(running.settings.database_url.get_secret_value())
    with database.transaction() as session:
        project = projects.ensure(session, "forgetful")
        _, secret = keys.create(session, project.id, "k")
    database.dispose()
    service = replace(running, key=secret)
    yield service
    service.openai.close()
    service.http.close()


def everything(service: Service) -> dict[str, str]:
    """All rows of all tables as text, by table."""
    url = service.settings.database_url.get_secret_value().replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return {
            name: "\n".join(str(row[0]) for row in connection.execute(f'SELECT t::text FROM "{name}" t'))  # type: ignore[call-overload]  # noqa: S608
            for (name,) in tables
        }


def stored(service: Service) -> dict[str, bytes]:
    folder = Path(service.settings.storage_url.removeprefix("file://"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def trained(service: Service, folder: Path) -> tuple[str, str, str]:
    """A file with good rows and a bad one, looked at in every way; a job trained on it. File, its sha256, job."""
    rows = [{"prompt": f"{WORD} {n}", "chosen": f"{WORD} yes {n}", "rejected": f"{WORD} no {n}"} for n in range(16)]
    lines = [json.dumps(row) for row in rows] + [json.dumps({"prompt": WORD, "chosen": WORD, "rejected": WORD})]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    file_id = service.upload(path)
    job_id = service.start_job("base/tiny", file_id, "dpo", 1, **SPEC, skip_bad_rows=0.2)
    for query in ("report?model=base/tiny&wait=30", "preview?model=base/tiny&wait=30"):
        assert service.http.get(f"/v1/files/{file_id}/{query}").status_code == 200
    service.succeeded(job_id)
    service.nothing_left()
    return file_id, sha256(path.read_bytes()).hexdigest(), job_id


def removed(service: Service) -> bool:
    return not everything(service)["removals"]


def test_nothing_of_a_deleted_file_is_left(theirs: Service, tmp_path: Path) -> None:
    file_id, digest, job_id = trained(theirs, tmp_path)
    before = stored(theirs)
    assert any(WORD.encode() in content for content in before.values())
    known = everything(theirs)
    assert digest in known["files"]
    assert file_id in known["checks"]
    private = [key for key in before if key.startswith("private/")]
    assert any(key.startswith(f"private/{job_id}/") for key in private)

    theirs.openai.files.delete(file_id)
    poll_until(lambda: removed(theirs), "all removals are carried out")
    after = stored(theirs)
    assert [key for key, content in after.items() if WORD.encode() in content or digest.encode() in content] == [
        key for key in after if key.endswith(("/manifest.json", "/README.md")) and job_id in key
    ], "the hash stays in the manifests and cards of the models alone"
    assert not any(key.startswith(f"private/{job_id}") for key in after)
    assert not [key for key in after if "/private/tokens/" in key or (job_id in key and key.startswith("private/"))]
    rows = everything(theirs)
    assert {table for table, text in rows.items() if WORD in text or digest in text} == set()
    for table in ("files", "checks", "token_tables", "reference_shards"):
        assert file_id not in rows[table]
        assert job_id not in rows[table]
    assert theirs.download(str(theirs.job(job_id).fine_tuned_model))  # what was trained is still there


def test_nothing_of_a_deleted_project_is_left(theirs: Service, tmp_path: Path) -> None:
    file_id, digest, job_id = trained(theirs, tmp_path)
    organization = theirs.job(job_id).organization_id
    database = Database(theirs.settings.database_url.get_secret_value())
    with database.transaction() as session:
        delete_project(session, "forgetful")
    database.dispose()
    poll_until(lambda: removed(theirs), "the worker carried all removals out")
    assert theirs.http.get("/v1/files").status_code == 401
    after = stored(theirs)
    assert [key for key in after if any(name in key for name in (file_id, job_id, organization))] == []
    assert [key for key, content in after.items() if WORD.encode() in content or digest.encode() in content] == []
    rows = everything(theirs)
    assert {table for table, text in rows.items() if organization in text} == {"audit"}
    assert {table for table, text in rows.items() if WORD in text or digest in text or "forgetful" in text} == set()
