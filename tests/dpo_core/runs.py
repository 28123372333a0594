"""Makes run directories, trains them for real in other processes, and reads what they left."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from dpo_core.run_directory import RunDirectory, read_lines
from dpo_core.spec import ModelSource, RunSpec, TrainingSpec
from tests.makers import make_tiny_model, write_preference_file, write_supervised_file

TRAINING: dict[str, Any] = {
    "beta": 0.1,
    "learning_rate": 1e-3,
    "batch_size": 8,
    "micro_batch_tokens": 128,
    "packing": "shared",
    "epochs": 1,
    "max_length": 128,
    "precision": "float32",
    "zero_stage": 0,
    "offload": "none",
    "compile": False,
    "activation_checkpointing": False,
    "validation_fraction": 0.0,
    "evaluation_steps": 3,
    "checkpoint_steps": 3,
}


class Workshop:
    """One model and its data in `folder`; makes and runs attempts beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = ModelSource(id="default/tiny", path=make_tiny_model(folder / "model"))
        # 44 pairs in batches of 8: the last batch of the epoch has 4, which 2 ranks × micro-batch 3 don't fill.
        self.pairs = write_preference_file(folder / "pairs.jsonl", 44, seed=1)
        self.held_out = write_preference_file(folder / "held_out.jsonl", 5, seed=2)
        self.examples = write_supervised_file(folder / "examples.jsonl", 44, seed=3)

    def make(self, name: str, *, ranks: int = 1, model: ModelSource | None = None, **run: Any) -> RunDirectory:
        """A run directory; `run` holds RunSpec fields, and under `training` changes to TRAINING."""
        training = TrainingSpec.model_validate(TRAINING | run.pop("training", {}))
        dpo = training.method == "dpo"
        files = (
            {"training_file": self.pairs, "validation_file": self.held_out} if dpo else {"training_file": self.examples}
        )
        spec = RunSpec(
            job_id=name,
            training=training,
            model=model or self.base,
            ranks=ranks,
            **(files | run),
        )
        directory = RunDirectory(self.folder / name)
        directory.create(spec)
        return directory


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}


def train_all(directories: list[RunDirectory], ranks: int) -> None:
    """Trains them in order in one launch of `ranks` processes."""
    result = torchrun("tests.dpo_core.several_runs", directories, ranks)
    assert result.returncode == 0, result.stderr[-5000:]


def torchrun(module: str, directories: list[RunDirectory], ranks: int) -> subprocess.CompletedProcess[str]:
    """Runs a module of the tests in `ranks` processes that find each other; alone where it is one."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}"]
    launcher.append(f"--log-dir={os.devnull}")  # else a folder of its own stays in TMPDIR
    program = [*launcher, "--module", module] if ranks > 1 else ["-m", module]
    return subprocess.run(
        [sys.executable, *program, *(str(directory.path) for directory in directories)],
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
        cwd=Path(__file__).parents[2],
        env=environment(),
    )


def launch(directory: RunDirectory) -> subprocess.Popen[bytes]:
    """Starts the real launcher; its output goes to the run directory's log."""
    with open(directory.log_file, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dpo_core.launch", str(directory.path)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
            env=environment() | {"DPO_PARENT_PID": str(os.getpid())},
        )


def lines(directory: RunDirectory, split: str = "train") -> dict[int, dict[str, float]]:
    """Metrics of one split by step."""
    if not directory.metrics_file.exists():
        return {}
    records = [json.loads(line) for line in directory.metrics_file.read_text().splitlines()]
    return {record["step"]: record["values"] for record in records if record["split"] == split}


def codes(directory: RunDirectory) -> list[str]:
    """Of the run's events, in order."""
    return [event["code"] for event, _ in read_lines(directory.events_file, 0)]


def losses(directory: RunDirectory) -> list[float]:
    values = lines(directory)
    return [values[step]["loss"] for step in sorted(values)]


def final_weights(directory: RunDirectory) -> str:
    """sha256 of the last checkpoint's weights."""
    folder, _ = directory.complete_checkpoints()[-1]
    (file,) = (folder / "model").glob("*model.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def tail(directory: RunDirectory) -> str:
    return directory.log_file.read_text(errors="replace")[-4000:]


def all_gone(processes: list[psutil.Process], seconds: float = 120) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]
