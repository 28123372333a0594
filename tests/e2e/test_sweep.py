"""A sweep through the whole service: nine jobs, one reference pass, a table with intervals, and one model promoted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from cli.sweep_view import lines
from tests.e2e.test_service import reference_counts
from tests.makers import write_preference_file
from tests.service import Service, poll_until

logger = logging.getLogger(__name__)

SWEEPS = "/v1/fine_tuning/sweeps"
PAIRS = 40
TRAINING = {
    "learning_rate": [1e-3, 3e-3, 1e-2],
    "beta": [0.05, 0.1, 0.5],
    "batch_size": 8,
    "max_length": 128,
    "validation_fraction": 0.4,
    "evaluation_steps": 2,
    "checkpoint_steps": 2,
}


def post(running: Service, path: str, body: object) -> dict[str, Any]:
    answer = running.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_nine_jobs_measure_the_reference_once(running: Service, tmp_path: Path) -> None:
    # no other test's pairs, whose values might be known already
    file_id = running.upload(write_preference_file(tmp_path / "pairs.jsonl", PAIRS, seed=99))
    body = {"model": "base/tiny", "training_file": file_id, "method": {"type": "dpo"}, "training": TRAINING}
    sweep_id = post(running, SWEEPS, body)["id"]

    def table() -> dict[str, Any]:
        found: dict[str, Any] = running.http.get(f"{SWEEPS}/{sweep_id}").json()
        return found

    poll_until(lambda: table()["status"] not in ("queued", "running"), "the sweep is over", seconds=1500, every=2)
    done = table()
    logger.info("%s", "\n".join(lines(done)))
    rows = done["results"]
    assert [row["state"] for row in rows] == ["succeeded"] * 9, [row["error"] for row in rows]
    first, *others = [reference_counts(running, row["job"]) for row in rows]
    assert (first, others) == ({"reference_computed": (0, PAIRS)}, [{"reference_found": (PAIRS, 0)}] * 8)

    for row in rows:
        for name in ("loss", "rewards/margins", "rewards/accuracies"):
            low, value, high = (row["metrics"][f"{name}{end}"] for end in ("/low", "", "/high"))
            assert low <= value <= high
    best = max(row["metrics"]["rewards/accuracies"] for row in rows)
    ahead = next(row for row in rows if row["best"])
    assert (ahead["job"], ahead["metrics"]["rewards/accuracies"]) == (done["best"], best)

    promoted = post(running, f"{SWEEPS}/{sweep_id}/promote", {})
    assert promoted["id"] == done["name"]
    assert running.download(done["name"]) == running.download(ahead["model"])
    running.openai.models.delete(ahead["model"])
    assert running.download(done["name"])["model.safetensors"]
