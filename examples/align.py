"""Your model, your pairs: upload, train, watch, download. `python examples/align.py base/my-model pairs.jsonl`

Needs OPENAI_BASE_URL and OPENAI_API_KEY, as `dpo up` prints them. `--training '{"learning_rate": 1e-6}'` takes any
field of the API's `training` object.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import time
from pathlib import Path

from openai import HttpxBinaryResponseContent, OpenAI, OpenAIError
from openai.types.fine_tuning import FineTuningJob

POLL_SECONDS = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the id that `dpo models add` printed, or a checkpoint's")
    parser.add_argument("pairs", type=Path, help="JSONL: prompt, chosen, rejected; or OpenAI's preference format")
    parser.add_argument("--training", type=json.loads, default={}, help="JSON object; default: every choice is made")
    arguments = parser.parse_args()
    try:
        client = OpenAI()
        with open(arguments.pairs, "rb") as file:
            pairs = client.files.create(file=file, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=arguments.model,
            training_file=pairs.id,
            method={"type": "dpo"},
            extra_body={"training": arguments.training},
        )
        job = follow(client, job)
        if job.status == "succeeded" and job.fine_tuned_model:
            print(f"the weights are in {download(client, job.fine_tuned_model)}")
    except (OpenAIError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0 if job.status == "succeeded" else 1


def follow(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    """Prints the job's events as they come, until its end."""
    seen: set[str] = set()
    while True:
        job = client.fine_tuning.jobs.retrieve(job.id)
        new = [event for event in client.fine_tuning.jobs.list_events(job.id, limit=100).data if event.id not in seen]
        for event in reversed(new):
            print(event.message)
            seen.add(event.id)
        if job.finished_at is not None:
            return job
        time.sleep(POLL_SECONDS)


def download(client: OpenAI, model: str) -> Path:
    """A folder for `from_pretrained`, in the current one."""
    archive = client.get(f"/models/{model}/archive", cast_to=HttpxBinaryResponseContent)
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
        tar.extractall(filter="data")
    return Path(model.split("/")[1])


if __name__ == "__main__":
    sys.exit(main())
