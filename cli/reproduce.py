"""`dpo reproduce`: runs a job again, and says whether the same came out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from cli.client import connected
from cli.errors import CommandFailed
from cli.watch import FINAL, POLL_SECONDS

BY_THE_CLOCK = (
    "items_per_second",
    "tokens_per_second",
    "unique_tokens_per_second",
    "flops_per_second",
    "mfu",
    "peak_memory_bytes",
)
"""Measurements that are other numbers each time, whatever was computed."""

Steps = dict[tuple[str, int], Mapping[str, float]]
"""Measurements by split and step."""


def reproduce(job_id: str) -> tuple[str, str]:
    """The new job's id, and `identical` or what differs first. Raises CommandFailed where it can't be run again."""
    with connected() as client:
        job = client.fine_tuning.jobs.retrieve(job_id)
        again = _run_again(client, job)
        while again.status not in FINAL:
            time.sleep(POLL_SECONDS)
            again = client.fine_tuning.jobs.retrieve(again.id)
        if again.status != "succeeded":
            why = again.error.message if again.error else again.status
            raise CommandFailed(f"{again.id}, which repeats {job_id}, did not succeed: {why}")
        found = difference(
            _steps(client, job.id),
            _steps(client, again.id),
            _manifest(client, str(job.fine_tuned_model)),
            _manifest(client, str(again.fine_tuned_model)),
        )
        return again.id, found or "identical"


def difference(first: Steps, second: Steps, one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The earliest step whose measurements differ, then weights, each with what differs in what they were made of."""
    causes = _causes(one["provenance"], other["provenance"])
    for split, step in sorted(first.keys() | second.keys(), key=lambda key: (key[1], key[0])):
        mine, theirs = first.get((split, step)), second.get((split, step))
        if mine is None or theirs is None:
            return (
                f"step {step} ({split}) was measured only {'the second' if mine is None else 'the first'} time{causes}"
            )
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                return f"step {step} ({split}) differs: {name} was {mine.get(name)!r}, now {theirs.get(name)!r}{causes}"
    names = sorted({file["path"] for file in _different(one["files"], other["files"])})
    if names:
        return f"all steps were measured alike, but the model's files differ: {', '.join(names)}{causes}"
    return None


def _run_again(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    if job.status != "succeeded":
        raise CommandFailed(f"{job.id} is {job.status}; only a job that succeeded can be compared with")
    facts = job.model_dump()
    run = facts["run"]
    extra: dict[str, Any] = {
        "training": run["resolved"]["training"],
        "resources": {"gpus": run["gpus"]},
        "training_files": facts["training_files"],
        "validation_file": job.validation_file,
    }
    return client.fine_tuning.jobs.create(
        model=job.model,
        training_file=job.training_file,
        suffix="again",
        seed=job.seed,
        extra_body={name: value for name, value in extra.items() if value is not None},
    )


def _steps(client: OpenAI, job_id: str) -> Steps:
    answer = client.get(f"/fine_tuning/jobs/{job_id}/metrics", cast_to=object)
    data: list[dict[str, Any]] = answer["data"]  # type: ignore[index]
    return {
        (line["split"], line["step"]): {
            name: value for name, value in line["values"].items() if name not in BY_THE_CLOCK
        }
        for line in data
    }


def _manifest(client: OpenAI, model_id: str) -> dict[str, Any]:
    answer: Any = client.get(f"/models/{quote(model_id)}/manifest", cast_to=object)
    return dict(answer)


def _causes(one: dict[str, Any], other: dict[str, Any]) -> str:
    differing = [name for name in one if one[name] != other.get(name)]
    return f"; made with another {', '.join(differing)}" if differing else "; made of the same, as far as is known"


def _different(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [file for file in one if file not in other] + [file for file in other if file not in one]
