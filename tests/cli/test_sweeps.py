"""`dpo sweep` against the real API; tests/control_plane/sweeps.py plays the worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from openai import OpenAI

from cli.submit import Flags, request_body
from cli.sweep_view import lines
from cli.sweeps import _values
from control_plane.database import Database
from control_plane.errors import InvalidRequest
from control_plane.sweep_requests import read_sweep
from tests.cli.conftest import Dpo
from tests.cli.work import refused as fail_validation
from tests.control_plane.sweeps import run_all


def test_a_sweep_from_a_file_to_a_promoted_model(
    client: OpenAI, base: str, pairs: Path, dpo: Dpo, database: Database
) -> None:
    spec = pairs.with_name("sweep.json")
    spec.write_text(json.dumps({"training": {"beta": [0.1, 0.5], "batch_size": 8}}))
    done = dpo("sweep", "submit", pairs, "--model", base, "--spec", spec, "--learning-rate", "1e-5,auto")
    assert done.returncode == 0, done.stderr
    sweep_id = done.stdout.strip()
    assert done.stderr.endswith(f" sweep show {sweep_id} --watch\n")
    waiting = dpo("jobs").stdout.splitlines()
    assert len(waiting) == 5 and " validating after ftjob-" in waiting[1]
    listed = dpo("sweep", "list").stdout.splitlines()
    assert [line.split() for line in listed] == [
        ["sweep", "status", "jobs", "over"],
        [sweep_id, "queued", "4", "beta,", "learning_rate"],
    ]

    run_all(database, [0.7, 0.81, 0.6, 0.79])
    titles, *rows, _, state, best, on = dpo("sweep", "show", sweep_id, "--watch").stdout.splitlines()
    assert titles.split()[:5] == ["job", "beta", "learning_rate", "state", "steps"]
    assert [row.split()[1:3] for row in rows] == [["0.1", "1e-05"], ["0.1", "auto"], ["0.5", "1e-05"], ["0.5", "auto"]]
    assert "0.8100 [0.7600, 0.8600]" in rows[1]
    assert rows[0].endswith("0.3000") and rows[1].endswith("best") and rows[3].endswith("within its interval")
    assert state == f"{sweep_id} is succeeded: 4 succeeded"
    assert best.startswith("best by accuracy on held-out data: ftjob-") and "; 1 more within its interval" in best
    assert on.endswith(f" sweep promote {sweep_id}")

    model = dpo("sweep", "promote", sweep_id).stdout.strip()
    assert client.models.retrieve(model).details["job"] == rows[1].split()[0]  # type: ignore[attr-defined]
    other = rows[0].split()[0]
    assert dpo("sweep", "promote", sweep_id, "--job", other).stdout.strip() == model
    assert client.models.retrieve(model).details["job"] == other  # type: ignore[attr-defined]


def test_a_sweep_is_cancelled(base: str, pairs: Path, dpo: Dpo) -> None:
    sweep_id = dpo("sweep", "submit", pairs, "--model", base, "--beta", "0.1,0.2").stdout.strip()
    assert dpo("sweep", "cancel", sweep_id).stdout == f"cancelled {sweep_id}\n"
    shown = dpo("sweep", "show", sweep_id).stdout
    assert shown.count(" cancelled ") == 2 and f"{sweep_id} is cancelled: 2 cancelled" in shown
    assert dpo("sweep", "show", sweep_id, "--watch").returncode == 1
    refused = dpo("sweep", "cancel", sweep_id)
    assert refused.returncode == 1 and "nothing to cancel" in refused.stderr


def test_a_sweep_without_several_values_is_refused_before_the_upload(
    client: OpenAI, base: str, pairs: Path, dpo: Dpo
) -> None:
    refused = dpo("sweep", "submit", pairs, "--model", base, "--beta", "0.1")
    assert refused.returncode == 1 and "give at least one field of `training` as a list" in refused.stderr
    assert client.files.list().data == []


def test_options_win_over_the_spec_files_lists() -> None:
    spec = {"training": {"beta": [0.1, 0.5], "loss": ["sigmoid", {"sigmoid": 1, "sft": 0.1}]}}
    body = request_body(spec, Flags("base/m", beta=[0.2, 0.3]), check=read_sweep)
    assert body["training"] == {"beta": [0.2, 0.3], "loss": spec["training"]["loss"]}
    with pytest.raises(InvalidRequest, match="must be"):
        request_body(spec, Flags("base/m"))


def test_why_jobs_failed_is_said_once(base: str, pairs: Path, dpo: Dpo, database: Database) -> None:
    sweep_id = dpo("sweep", "submit", pairs, "--model", base, "--beta", "0.1,0.2").stdout.strip()
    for _ in range(2):
        fail_validation(database, "No row can be used.")
    shown = dpo("sweep", "show", sweep_id, "--watch")
    assert shown.returncode == 1
    (said,) = [line for line in shown.stdout.splitlines() if line.endswith(" failed: No row can be used.")]
    assert said.count("ftjob-") == 2


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        (None, float, None),
        ("0.1", float, 0.1),
        ("1e-6, 3e-6", float, [1e-6, 3e-6]),
        ("auto,2", int, ["auto", 2]),
    ],
)
def test_values_between_commas(text: str | None, kind: Any, expected: object) -> None:
    assert _values(text, kind, "--x") == expected


def test_what_is_no_value_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="no list of values"):
        _values("1,two", int, "--epochs")


def test_a_supervised_sweep_shows_its_loss_first() -> None:
    row = {
        "job": "ftjob-1",
        "values": {"lora": None},
        "state": "running",
        "step": 2,
        "total_steps": None,
        "metrics": {"token_accuracy": 0.5, "loss": 1.5, "loss/low": 1.25, "loss/high": 1.75},
        "best": True,
        "within_best": True,
        "pairs": 20,
        "comparable": True,
        "error": None,
    }
    sweep = {
        "id": "ftsweep-1",
        "status": "running",
        "jobs": {"running": 1},
        "axes": [{"field": "lora", "values": [None]}],
        "compared_by": "loss",
        "best": "ftjob-1",
        "results": [row],
    }
    shown = lines(sweep)
    assert shown[0].split("  ")[-1].strip() == "token accuracy [95 %]"
    assert shown[1].split() == ["ftjob-1", "null", "running", "2/?", "1.5000", "[1.2500,", "1.7500]", "0.5000", "best"]
    assert shown[-1] == "best by loss on held-out data: ftjob-1"
    nothing = {"best": None, "results": [row | {"best": False, "metrics": {}, "pairs": None}]}
    assert lines(sweep | nothing)[-1] == "ftsweep-1 is running: 1 running"
    assert lines(sweep | nothing | {"status": "succeeded"})[-1].startswith("nothing was held out, so the jobs can't be")
    other = row | {"job": "ftjob-2", "best": False, "within_best": False, "pairs": 1500, "comparable": False}
    shown = lines(sweep | {"results": [row, other]})
    assert shown[2].endswith("not compared: on 1,500 held-out rows")
    assert "jobs were measured on different rows" in shown[-2]
