"""The whole service on one small task: a model that says 2+2 is 22 learns to prefer 4. Run by `make demo`.

Everything between the start of the service and the downloaded weights goes through the `openai` client.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import questions
from base_model import make_base_model
from openai import HttpxBinaryResponseContent, OpenAI, OpenAIError
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console
from service import DemoFailed, Service, running_service
from transformers.utils.logging import disable_progress_bar

from cli.errors import CommandFailed
from cli.watch import follow

OUTPUT = Path(__file__).resolve().parents[2] / "demo-output"
BETA = 1.0
LABEL_SMOOTHING = 0.05
"""One label in twenty counts as wrong, so DPO is content once it is 95 % sure. Without it DPO goes on pushing the
loser down for ever and takes good answers along: docs/log.md has the figures."""

RANKS = min(2, os.cpu_count() or 1)
MOST_BEFORE, LEAST_ACCURACY, LEAST_EXACT = 0.7, 0.95, 0.9


@dataclass(frozen=True)
class Result:
    """The demo's last line. The four shares are measured on all held-out questions; `steps` are both jobs'."""

    status: str
    heldout_accuracy_before: float
    heldout_accuracy_after: float
    exact_match_before: float
    exact_match_after: float
    steps: int
    seconds: float
    checkpoint: str


@dataclass(frozen=True)
class Trained:
    """What the service gave back: both checkpoints' folders, and the number of optimizer steps of both jobs."""

    before: Path
    after: Path
    steps: int


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seed", type=int, default=0, help="of the data, the base model and the training")
    seed = arguments.parse_args().seed
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    data = Path(tempfile.mkdtemp(prefix="dpo-demo-"))
    try:
        result = run(console, data, seed)
    except (DemoFailed, CommandFailed, OpenAIError, KeyboardInterrupt) as problem:
        reason = "interrupted" if isinstance(problem, KeyboardInterrupt) else str(problem)
        console.print(f"\nThe demo stopped: {reason}\nThe service's logs are in {data / 'logs'}", markup=False)
        print(json.dumps({"status": "failed", "error": reason}))
        return 1
    shutil.rmtree(data)
    print(json.dumps(asdict(result)))
    return 0 if result.status == "succeeded" else 1


def run(console: Console, data: Path, seed: int) -> Result:
    started = time.monotonic()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed, which transformers imports, warns that it looked
    disable_progress_bar()  # transformers' own; this demo draws one where there is something to wait for
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    training, held_out = questions.split(seed)
    console.print(
        "\n[bold]DPO in one sentence:[/bold] show a model pairs of answers, and raise the probability of the better "
        "one\nrelative to the worse one, while staying close to where it started.\n"
    )
    parameters = make_base_model(OUTPUT / "base_model", seed)
    console.print(f"1. Made a Llama of {parameters:,} parameters that knows nothing, and a tokenizer for sums.")
    console.print("2. Starting the service: PostgreSQL, Redis, the API and a worker (`dpo up`) …")
    with running_service(data) as service:
        console.print(f"   It answers at {service.base_url}; from here on everything is HTTP.")
        trained = train(service, console, training, held_out, seed)
        console.print("7. Stopping the service. The weights are ours: transformers loads them without it.\n")
    return evaluate(console, trained, held_out, started)


def train(
    service: Service,
    console: Console,
    training: list[questions.Question],
    held_out: list[questions.Question],
    seed: int,
) -> Trained:
    client = service.client
    base = service.add_base_model(OUTPUT / "base_model", "tiny-llama")
    supervised = upload(client, questions.write_supervised(OUTPUT / "supervised.jsonl", training))
    pairs = upload(client, questions.write_preferences(OUTPUT / "pairs.jsonl", training))
    held_out_pairs = upload(client, questions.write_preferences(OUTPUT / "held_out_pairs.jsonl", held_out))
    console.print(f"3. Registered it as {base}, and uploaded examples and pairs about {len(training)} questions.")
    console.print(
        "4. A supervised job teaches it to add, and a bad habit with it: two of three examples say that\n"
        f"   2+2 is 22. ({RANKS} DeepSpeed ranks on the CPU)"
    )
    learned = succeeded(client, supervised_job(client, base, supervised, seed), console)
    before = download(client, learned)
    console.print(
        "5. A DPO job goes on from that checkpoint, with pairs: the sum is better than the habit's answer.\n"
        "   Accuracy is soon 1: the sum has gained on the habit. It goes on because the margin still grows, and the\n"
        "   model says the sum only once the margin is larger than the habit's lead at the start."
    )
    preferred = succeeded(client, dpo_job(client, learned, pairs, held_out_pairs, seed), console)
    after = download(client, preferred)
    console.print(f"6. Downloaded {preferred.fine_tuned_model}\n   to {after}", soft_wrap=True)
    return Trained(before, after, steps=steps_of(learned) + steps_of(preferred))


def upload(client: OpenAI, path: Path) -> str:
    with open(path, "rb") as file:
        return client.files.create(file=file, purpose="fine-tune").id


def supervised_job(client: OpenAI, base: str, file: str, seed: int) -> FineTuningJob:
    return client.fine_tuning.jobs.create(
        model=base,
        training_file=file,
        suffix="habit",
        seed=seed,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 128}}},
        extra_body={
            "training": {"learning_rate": 2e-3, "adam_beta2": 0.98, "validation_fraction": 0, "checkpoint_steps": 500},
            "resources": {"gpus": RANKS},
        },
    )


def dpo_job(client: OpenAI, start: FineTuningJob, pairs: str, held_out_pairs: str, seed: int) -> FineTuningJob:
    hyperparameters = {"n_epochs": 8, "batch_size": 64, "beta": BETA}
    return client.fine_tuning.jobs.create(
        model=start.fine_tuned_model or "",
        training_file=pairs,
        validation_file=held_out_pairs,
        suffix="sums",
        seed=seed,
        method={"type": "dpo", "dpo": {"hyperparameters": hyperparameters}},
        extra_body={
            "training": {
                "learning_rate": 2e-4,
                "adam_beta2": 0.98,
                "label_smoothing": LABEL_SMOOTHING,
                "checkpoint_steps": 50,
            },
            "resources": {"gpus": RANKS},
        },
    )


def succeeded(client: OpenAI, job: FineTuningJob, console: Console) -> FineTuningJob:
    """Shows the job until it has succeeded. Raises DemoFailed when it ends otherwise."""
    job = follow(client, job.id, console, events=False)
    if job.status != "succeeded":
        reason = job.error.message if job.error and job.error.message else "no reason was given"
        raise DemoFailed(f"job {job.id} ended {job.status}: {reason}")
    return job


def steps_of(job: FineTuningJob) -> int:
    steps: int = (job.model_extra or {})["run"]["progress"]["step"]
    return steps


def download(client: OpenAI, job: FineTuningJob) -> Path:
    """The job's final checkpoint, unpacked; its folder."""
    name = (job.fine_tuned_model or "").split("/")[1]
    archive = client.get(f"/models/{job.fine_tuned_model}/archive", cast_to=HttpxBinaryResponseContent)
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
        tar.extractall(OUTPUT, filter="data")
    return OUTPUT / name


def evaluate(console: Console, trained: Trained, held_out: list[questions.Question], started: float) -> Result:
    """Loads both checkpoints with transformers and measures them on every held-out question."""
    from measure import exact_match, measure, preference_accuracy
    from report import show

    before, after = measure(trained.before, held_out), measure(trained.after, held_out)
    show(console, held_out, before, after, BETA)
    accuracy = preference_accuracy(before), preference_accuracy(after)
    exact = exact_match(before, held_out), exact_match(after, held_out)
    console.print(f"On all {len(held_out)} held-out questions, before and after:")
    console.print(f"  the right answer is more probable than the habit's  {accuracy[0]:7.1%} → {accuracy[1]:6.1%}")
    console.print(f"  the model's own answer is right                     {exact[0]:7.1%} → {exact[1]:6.1%}\n")
    learned = max(accuracy[0], exact[0]) <= MOST_BEFORE and accuracy[1] >= LEAST_ACCURACY and exact[1] >= LEAST_EXACT
    if learned:
        console.print("Now your own model: README.md, 'Your own model and data'.\n")
    else:
        console.print(
            f"That is less than expected: at most {MOST_BEFORE:.0%} before, then at least {LEAST_ACCURACY:.0%} "
            f"and {LEAST_EXACT:.0%}. Please report it."
        )
    return Result(
        status="succeeded" if learned else "missed_target",
        heldout_accuracy_before=round(accuracy[0], 4),
        heldout_accuracy_after=round(accuracy[1], 4),
        exact_match_before=round(exact[0], 4),
        exact_match_after=round(exact[1], 4),
        steps=trained.steps,
        seconds=round(time.monotonic() - started, 1),
        checkpoint=str(trained.after),
    )


if __name__ == "__main__":
    sys.exit(main())
