"""The result file: one row a step, the columns that docs/metrics.md defines; a later attempt's replaces it."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from control_plane import files, results
from control_plane.database import Database
from control_plane.errors import NotFound, StaleFence
from control_plane.leases import Claim
from control_plane.result_files import OPENAIS, PURPOSE, attach, lines
from control_plane.tables import Job
from tests.control_plane.rows import PROJECT, noted, read_job, started

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
MEASURED = [
    {"split": "train", "step": 0, "values": {"loss": 0.75, "rewards/accuracies": 0.5}},
    {"split": "validation", "step": 0, "values": {"loss": 0.5}},
    {"split": "train", "step": 1, "values": {"loss": 0.25, "rewards/accuracies": 1.0}},
    {"split": "validation", "step": 2, "values": {"loss": 0.125}},
]


def table(database: Database, job_id: str) -> list[list[str]]:
    with database.transaction() as session:
        return list(csv.reader("".join(lines(session, session.get_one(Job, job_id))).splitlines()))


def put(database: Database, claim: Claim, file_id: str) -> None:
    with database.transaction() as session:
        attach(session, claim, file_id=file_id, bytes=9, sha256="0")


def test_a_row_for_every_step(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        results.record(session, claim, metrics=MEASURED)
    header, *rows = table(stocked, claim.job_id)
    assert header == ["step", *OPENAIS["dpo"], "train/loss", "train/rewards/accuracies", "validation/loss"]
    assert rows == [
        ["0", "0.75", "0.5", "0.5", "", "0.75", "0.5", "0.5"],
        ["1", "0.25", "1.0", "", "", "0.25", "1.0", ""],
        ["2", "", "", "0.125", "", "", "", "0.125"],
    ]


def test_a_supervised_job_and_one_without_any_measurement(stocked: Database) -> None:
    claim = started(stocked, method={"type": "supervised"})
    assert table(stocked, claim.job_id) == [["step", *OPENAIS["supervised"]]]
    with stocked.transaction() as session:
        line = {"split": "validation", "step": 3, "values": {"loss": 2.0, "token_accuracy": 0.5}}
        results.record(session, claim, metrics=[line])
    assert table(stocked, claim.job_id)[1] == ["3", "", "", "2.0", "0.5", "2.0", "0.5"]


def test_it_is_a_file_of_the_project_until_it_is_deleted(stocked: Database) -> None:
    claim = started(stocked)
    put(stocked, claim, "file-first")
    put(stocked, claim, "file-second")
    assert read_job(stocked, claim.job_id).result_file_id == "file-second"
    with stocked.transaction() as session:
        assert [file.id for file in files.list_files(session, PROJECT, purpose=PURPOSE).items] == ["file-second"]
        assert noted(session) == ["files/file-first"]
        with pytest.raises(NotFound):
            files.get(session, PROJECT, "file-first")
        files.delete(session, PROJECT, "file-second")
    assert read_job(stocked, claim.job_id).result_file_id is None


def test_a_stale_attempt_attaches_nothing(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        results.hand_back(session, claim)
    with pytest.raises(StaleFence):
        put(stocked, claim, "file-late")


def test_the_page_defines_openais_columns() -> None:
    defined = re.findall(
        r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8").split("## The result file")[1], re.MULTILINE
    )
    assert defined == ["step", *OPENAIS["dpo"]]
