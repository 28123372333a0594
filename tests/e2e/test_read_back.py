"""What real jobs trained, read back through /hf by clients that were told nothing but HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.makers import write_preference_file
from tests.service import Service

SPEC = {"learning_rate": 1e-2, "batch_size": 12, "max_steps": 2, "max_length": 128, "beta": 0.2, "warmup_ratio": 0.0}
LORA = {"rank": 4, "alpha": 8.0}

READS = """
import json, sys, torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

def answers(name, **revision):
    ids = AutoTokenizer.from_pretrained(name, **revision)("What is 12+34?", return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(name, **revision)
    with torch.no_grad():
        return model(ids).logits

first, second = sys.argv[1:]
step = answers(f"{second}-step-2")
merged = answers(f"{second}-merged")
assert torch.equal(step, answers(second))
assert torch.equal(merged, answers(second, revision="merged"))
assert torch.equal(merged, answers(snapshot_download(f"{second}-merged")))
differences = {
    "merged": (merged - step).abs().max().item(),
    "first": (answers(first) - step).abs().max().item(),
    "base": (answers("base/tiny") - answers(first)).abs().max().item(),
}
sys.stdout.write("\\n" + json.dumps(differences))
"""


@dataclass(frozen=True)
class Rounds:
    """Models of two jobs with LoRA, the second of which trains the first one's adapter on."""

    file_id: str
    first: str
    second: str


@pytest.fixture(scope="module")
def rounds(running: Service, tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    file_id = running.upload(write_preference_file(tmp_path_factory.mktemp("data") / "pairs.jsonl", 24))

    def trained(start: str) -> str:
        return running.succeeded(running.start_job(start, file_id, "dpo", ranks=1, **SPEC, lora=LORA))

    first = trained("base/tiny")
    return Rounds(file_id, first, trained(first))


def merge(running: Service, model: str) -> str:
    """What `dpo models merge` prints."""
    environment = os.environ | {"OPENAI_BASE_URL": f"{running.url}/v1", "OPENAI_API_KEY": running.key}
    command = [sys.executable, "-m", "cli", "models", "merge", model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_same_string_everywhere(running: Service, rounds: Rounds, tmp_path: Path) -> None:
    """Of a second round of LoRA: read by `models`, trained on, merged, and loaded by transformers."""
    name = merge(running, rounds.second)
    assert name == f"{rounds.second}-merged"
    for model in (rounds.first, rounds.second, name):
        assert running.openai.models.retrieve(model).id == model
    environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment |= {"HOME": str(tmp_path), "HF_ENDPOINT": f"{running.url}/hf", "HF_TOKEN": running.key}
    done = subprocess.run(
        [sys.executable, "-c", READS, rounds.first, rounds.second],
        env=environment | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["merged"] < 1e-4, "float32 all the way"
    assert min(found["first"], found["base"]) > 1e-3, "each round learned something"
    manifest = running.http.get(f"/v1/models/{name}/manifest").json()
    assert manifest["provenance"] == running.http.get(f"/v1/models/{rounds.second}/manifest").json()["provenance"]
    files = running.download(name)
    assert {file["path"] for file in manifest["files"]} == files.keys() - {"README.md", "SHA256SUMS", "manifest.json"}
    job = running.start_job(name, rounds.file_id, "dpo", ranks=1, **SPEC)
    assert running.job(job).model == name
    running.openai.fine_tuning.jobs.cancel(job)
