"""One run of this project, as the service starts it: `python -m dpo_core.launch RUN_DIR`.

    python -m benchmarks.ours RUN_DIR GRADIENTS

trains the same in this process and writes the first step's gradient, before it is clipped, to a safetensors file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.outcome import Outcome
from benchmarks.workload import SEED, Workload
from dpo_core.prepare import prepare
from dpo_core.process import PARENT_PID
from dpo_core.run_directory import RunDirectory, read_lines
from dpo_core.spec import Device, ModelSource, RunSpec, TrainingSpec

NEVER = 1_000_000
"""Steps between two evaluations or checkpoints: only the last step makes one."""

IMPORTS = "import resource, deepspeed, transformers.models.llama.modeling_llama, dpo_core.train"
MEASURE = "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"


def make_run(
    workload: Workload,
    folder: Path,
    training: dict[str, Any],
    *,
    ranks: int = 1,
    device: Device = "cpu",
    reference_cache: Path | None = None,
) -> RunDirectory:
    """A run directory that trains on every pair of the workload once; `training` holds fields of TrainingSpec.

    `reference_cache`: the reference log-probabilities that an earlier run left.
    """
    fields = {
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "batch_size": workload.batch_size,
        "max_length": workload.max_length,
        "epochs": 1,
        "validation_fraction": 0.0,
        "evaluation_steps": NEVER,
        "checkpoint_steps": NEVER,
        "seed": SEED,
    }
    spec = RunSpec(
        job_id=folder.name,
        training=TrainingSpec.model_validate(fields | training),
        model=ModelSource(id="benchmark", path=workload.model),
        reference_cache=reference_cache,
        training_file=workload.pairs,
        ranks=ranks,
        device=device,
    )
    directory = RunDirectory(folder)
    directory.create(spec.model_copy(update={"training": prepare(spec, directory.tokens).training}))
    return directory


def train(directory: RunDirectory, imported: int) -> Outcome:
    """Launches the run and waits for its end. `imported`: resident bytes of a process before it loads a model.

    Raises:
        RuntimeError: the run failed.
    """
    environment = os.environ | {PARENT_PID: str(os.getpid())}
    with open(directory.log_file, "wb") as log:
        command = [sys.executable, "-m", "dpo_core.launch", str(directory.path)]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
    status = directory.status()
    if status is None or status.state != "succeeded":
        raise RuntimeError(f"The run in {directory.path} failed: {status}. Its log: {directory.log_file}")
    for slower in events(directory, "packing_limited"):
        print(slower["message"], file=sys.stderr, flush=True)
    shutil.rmtree(directory.checkpoints)  # the last step's, which is written after its time was noted
    steps = training_steps(directory)
    return Outcome(
        seconds=[later["time"] - earlier["time"] for earlier, later in pairwise(steps)],
        losses=losses(directory),
        memory=round(steps[-1]["values"]["peak_memory_bytes"]) - imported,
        reference_seconds=reference_seconds(directory),
    )


def training_steps(directory: RunDirectory) -> list[dict[str, Any]]:
    return [record for record, _ in read_lines(directory.metrics_file, 0) if record["split"] == "train"]


def losses(directory: RunDirectory) -> list[float]:
    return [step["values"]["loss"] for step in training_steps(directory)]


def reference_seconds(directory: RunDirectory) -> float:
    """What the trainer says that measuring the reference took; 0 where all of it was found."""
    return sum(float(event["data"]["seconds"]) for event in events(directory, "reference_computed"))


def events(directory: RunDirectory, code: str) -> list[dict[str, Any]]:
    return [record for record, _ in read_lines(directory.events_file, 0) if record["code"] == code]


def imported_bytes() -> int:
    """Resident bytes at the peak of a process that has imported what a run imports."""
    command = [sys.executable, "-c", f"{IMPORTS}; {MEASURE}"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def save_first_gradient(path: Path, target: Path) -> None:
    """Trains the run in `path` in this process and writes the gradient of step 0, before it is clipped."""
    from safetensors.torch import save_file

    from dpo_core.engine import processes
    from dpo_core.train import Loop

    directory = RunDirectory(path)
    run = directory.spec()
    with processes(run.device) as world:
        loop = Loop(run, directory, world)
        update = loop.engine.step

        def step(learning_rate: float) -> float:
            if loop.step == 0:
                named = loop.engine.module.named_parameters()
                gradients = {name: it.grad.float().cpu() for name, it in named if it.grad is not None}
                save_file({name: gradient.clone() for name, gradient in gradients.items()}, target)
            return update(learning_rate)

        loop.engine.step = step  # type: ignore[method-assign]
        loop.run_to_end()


if __name__ == "__main__":
    save_first_gradient(Path(sys.argv[1]), Path(sys.argv[2]))
