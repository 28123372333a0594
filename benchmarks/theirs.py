"""TRL's side: its settings, and one run of trl_run.py in TRL's own venv."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.outcome import Outcome
from benchmarks.workload import Workload
from dpo_core.spec import Device

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / "build" / "trl" / "bin" / "python"


@dataclass(frozen=True, slots=True)
class TrlSettings:
    micro_batch: int
    """Pairs in one forward pass; gradients are accumulated to a whole batch."""

    checkpointing: bool
    precomputed: bool
    """The reference's log-probabilities are measured before training; otherwise a second model runs beside."""

    def __str__(self) -> str:
        checkpointing = "checkpointing" if self.checkpointing else "no checkpointing"
        reference = "reference precomputed" if self.precomputed else "reference running"
        return f"TRL micro-batch {self.micro_batch}, {checkpointing}, {reference}"


DEFAULT = TrlSettings(micro_batch=8, checkpointing=True, precomputed=False)
"""What DPOConfig() says: per_device_train_batch_size 8, gradient_checkpointing, no precompute_ref_log_probs."""

GRID = [TrlSettings(*choice) for choice in product((1, 2, 4, 8), (True, False), (True, False))]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What both sides are told alike."""

    beta: float
    learning_rate: float
    device: Device
    lora_rank: int | None = None

    @property
    def weights(self) -> str:
        """The type that TRL loads weights in. Trained ones are float32, as ours are: bfloat16 loses small steps."""
        return "bfloat16" if self.lora_rank and self.device == "cuda" else "float32"


def train(
    workload: Workload, folder: Path, settings: TrlSettings, recipe: Recipe, gradients: Path | None = None
) -> Outcome:
    """Trains on every pair of the workload once, in a fresh process.

    Raises:
        RuntimeError: it failed; the message holds the end of what it printed.
    """
    (outcome,) = train_several(workload, folder, [settings], recipe, gradients).values()
    if outcome is None:
        raise RuntimeError(f"{settings}: out of memory")
    return outcome


def train_several(
    workload: Workload, folder: Path, grid: Sequence[TrlSettings], recipe: Recipe, gradients: Path | None = None
) -> dict[TrlSettings, Outcome | None]:
    """Trains once with each of the settings, all in one process; None where the memory was too small.

    Raises:
        RuntimeError: it failed; the message holds the end of what it printed.
    """
    folder.mkdir(parents=True)
    given, results = folder / "settings.json", {it: folder / f"{place}.json" for place, it in enumerate(grid)}
    runs = [
        _given(workload, settings, recipe, gradients=gradients, result=result) for settings, result in results.items()
    ]
    given.write_text(json.dumps(runs))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    command = [str(PYTHON), str(Path(__file__).with_name("trl_run.py")), str(given)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        raise RuntimeError(f"{', '.join(map(str, grid))} failed:\n{ended.stderr[-3000:]}")
    found = {settings: json.loads(file.read_bytes()) for settings, file in results.items()}
    return {settings: outcome and Outcome(**outcome) for settings, outcome in found.items()}


def _given(
    workload: Workload, settings: TrlSettings, recipe: Recipe, *, gradients: Path | None, result: Path
) -> dict[str, Any]:
    """What trl_run.py reads of one run."""
    return {
        "model": str(workload.model),
        "tokens": str(workload.tokens),
        "output": str(result.with_suffix(".output")),
        "result": str(result),
        "batch_size": workload.batch_size,
        "micro_batch": settings.micro_batch,
        "checkpointing": settings.checkpointing,
        "precomputed": settings.precomputed,
        "weights": recipe.weights,
        "beta": recipe.beta,
        "learning_rate": recipe.learning_rate,
        "device": recipe.device,
        "lora_rank": recipe.lora_rank,
        "gradients": str(gradients) if gradients else None,
    }
