"""The whole path with the unmodified `openai` client: HTTP, PostgreSQL, Redis, Celery, two DeepSpeed ranks."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from safetensors.numpy import load

from tests.makers import write_preference_file, write_supervised_file
from tests.service import Service, poll_until

PAIRS = 24
STEPS = 4
SPEC = {
    "learning_rate": 1e-2,
    "batch_size": PAIRS,
    "max_steps": STEPS,
    "warmup_ratio": 0.0,
    "max_length": 128,
    "validation_fraction": 0.0,
    "checkpoint_steps": STEPS,
    "evaluation_steps": STEPS,
}
LORA = {"rank": 4, "alpha": 8.0}
FULL_STAGES = [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long), 3]
LORA_STAGES = [pytest.param(0, marks=pytest.mark.long), pytest.param(1, marks=pytest.mark.long), 2, 3]
"""ZeRO stages. That all of them train the same is tests/dpo_core's in `make check`; here two show the way there."""


@pytest.fixture(scope="package")
def pairs(running: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of an uploaded file of preference pairs."""
    return running.upload(write_preference_file(tmp_path_factory.mktemp("data") / "pairs.jsonl", PAIRS))


@pytest.fixture(scope="package")
def supervised(running: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model of a supervised LoRA job: what the DPO jobs with LoRA start from."""
    file_id = running.upload(write_supervised_file(tmp_path_factory.mktemp("data") / "examples.jsonl", PAIRS))
    job_id = running.start_job("base/tiny", file_id, "supervised", **SPEC, lora=LORA)
    model_id = running.succeeded(job_id)
    losses = [line["loss"] for line in running.metrics(job_id)]
    assert losses[-1] < losses[0], "it learned something, so its adapter is not the identity"
    return model_id


@pytest.fixture(scope="package")
def first(running: Service, pairs: str) -> str:
    """The project's first DPO job on this base and these pairs: what it measures, the later ones find."""
    job_id = running.start_job("base/tiny", pairs, "dpo", **SPEC, zero_stage=0)
    running.succeeded(job_id)
    return job_id


def reference_counts(running: Service, job_id: str) -> dict[str, tuple[int, int]]:
    """By the code of the event that says it: pairs found in the cache, and pairs measured."""
    events = running.openai.fine_tuning.jobs.list_events(job_id, limit=100)
    told = [event.model_dump()["data"] for event in events]
    ends = ("reference_found", "reference_computed")
    return {data["code"]: (data["found"], data["computed"]) for data in told if data["code"] in ends}


def check_dpo(running: Service, job_id: str) -> None:
    """Trained from ln 2 downwards, with every step's metrics, and nothing left of it."""
    lines = running.metrics(job_id)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert lines[0]["rewards/accuracies"] == 0.5
    assert lines[-1]["loss"] < lines[0]["loss"]
    running.nothing_left()


@pytest.mark.parametrize("stage", FULL_STAGES)
def test_full_dpo_on_two_ranks(running: Service, pairs: str, first: str, stage: int) -> None:
    job_id = running.start_job("base/tiny", pairs, "dpo", **SPEC, zero_stage=stage) if stage else first
    files = running.download(running.succeeded(job_id))
    check_dpo(running, job_id)
    weights = load(files["model.safetensors"])
    assert weights["model.embed_tokens.weight"].shape == (264, 32)
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= set(files)
    ((code, (found, computed)),) = reference_counts(running, job_id).items()
    assert found + computed == PAIRS
    assert code == ("reference_computed" if computed else "reference_found")
    if job_id != first:  # other tests of this suite may have measured the first job's pairs; after it, all are known
        assert computed == 0


@pytest.mark.parametrize("stage", LORA_STAGES)
def test_lora_dpo_from_a_supervised_adapter_on_two_ranks(
    running: Service, pairs: str, supervised: str, stage: int
) -> None:
    """The reference is the base with the supervised adapter in effect: else the first loss would miss ln 2."""
    job_id = running.start_job(supervised, pairs, "dpo", **SPEC, zero_stage=stage, lora=LORA)
    files = running.download(running.succeeded(job_id))
    check_dpo(running, job_id)
    assert json.loads(files["adapter_config.json"])["r"] == LORA["rank"]
    assert all("lora_" in name for name in load(files["adapter_model.safetensors"]))


def test_a_bad_line_fails_the_job_with_its_number(running: Service, tmp_path: Path) -> None:
    path = write_preference_file(tmp_path / "pairs.jsonl", 3)
    with open(path, "a") as file:
        file.write('{"prompt": "What is 2+2?", "chosen": "4", "rejected": "4"}\n')
    job = running.finished(running.start_job("base/tiny", running.upload(path), "dpo", **SPEC))
    assert job.status == "failed"
    assert job.error is not None
    assert "line 4" in job.error.message
    assert job.error.param == "training_file"


def test_cancel_leaves_no_process(running: Service, pairs: str) -> None:
    job_id = running.start_job("base/tiny", pairs, "dpo", **SPEC | {"max_steps": 100_000})
    poll_until(lambda: bool(running.metrics(job_id)), "it trains")
    assert running.openai.fine_tuning.jobs.cancel(job_id).status == "cancelled"
    running.nothing_left()


def test_a_file_can_be_read_back(running: Service, pairs: str) -> None:
    content = io.BytesIO(running.openai.files.content(pairs).read())
    assert len(content.readlines()) == PAIRS
