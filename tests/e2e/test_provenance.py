"""What a checkpoint was made of, and that the same makes the same again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.reproduce import difference
from tests.makers import write_preference_file
from tests.service import Service

SPEC = {"learning_rate": 1e-2, "batch_size": 12, "max_steps": 3, "max_length": 128, "checkpoint_steps": 3, "beta": 0.2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_preference_file(tmp_path_factory.mktemp("data") / "pairs.jsonl", 24)


@pytest.fixture(scope="module")
def job_id(running: Service, data: Path) -> str:
    job_id = running.start_job("base/tiny", running.upload(data), "dpo", ranks=1, **SPEC)
    running.succeeded(job_id)
    return job_id


def test_the_manifest_names_everything_by_its_hash(running: Service, data: Path, job_id: str) -> None:
    model = str(running.job(job_id).fine_tuned_model)
    answer = running.http.get(f"/v1/models/{model}/manifest")
    assert answer.status_code == 200, answer.text
    manifest, files = answer.json(), running.download(model)
    assert json.loads(files["manifest.json"]) == manifest
    listed = {file["path"]: file["sha256"] for file in manifest["files"]}
    assert listed == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in files.items()
        if name not in ("manifest.json", "SHA256SUMS", "README.md")
    }
    made_of = manifest["provenance"]
    assert made_of["training"] == [
        {"sha256": hashlib.sha256(data.read_bytes()).hexdigest(), "bytes": data.stat().st_size, "weight": 1.0}
    ]
    assert (made_of["model"]["id"], made_of["spec"]["beta"]) == ("base/tiny", 0.2)
    assert made_of["spec"]["seed"] == running.job(job_id).seed
    assert made_of["machine"]["device"] == "cpu"
    assert {"torch", "deepspeed", "transformers"} <= made_of["libraries"].keys()
    assert all(len(made_of[name]) == 64 for name in ("environment",))
    assert len(made_of["code"]["source"]) == 64
    assert running.http.get("/v1/models/base/tiny/manifest").status_code == 404


def test_run_again_it_is_identical(running: Service, job_id: str) -> None:
    environment = os.environ | {"OPENAI_BASE_URL": f"{running.url}/v1", "OPENAI_API_KEY": running.key}
    command = [sys.executable, "-m", "cli", "reproduce", job_id]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again, _, found = done.stdout.strip().partition(": ")
    assert found == "identical"
    assert running.metrics(again)[-1]["loss"] == running.metrics(job_id)[-1]["loss"]


def test_the_first_step_that_differs_is_named() -> None:
    manifest = {"files": [{"path": "a", "sha256": "1"}], "provenance": {"python": "3.11.1", "day": "x"}}
    steps = {("train", 0): {"loss": 0.5}, ("train", 1): {"loss": 0.25}}
    assert difference(steps, steps, manifest, manifest) is None
    other = {**steps, ("train", 1): {"loss": 0.3}}
    newer = {**manifest, "provenance": {"python": "3.11.2", "day": "x"}}
    said = difference(steps, other, manifest, newer)
    assert said == "step 1 (train) differs: loss was 0.25, now 0.3; made with another python"
    assert "only the first time" in str(difference(steps, {("train", 0): {"loss": 0.5}}, manifest, manifest))
    weights = {**manifest, "files": [{"path": "a", "sha256": "2"}]}
    assert "the model's files differ: a" in str(difference(steps, steps, manifest, weights))
