"""What a run's checkpoints take in storage, from the sizes of its tensors alone; imports no torch."""

from __future__ import annotations

from dpo_core.footprint import adapter_parameters
from dpo_core.model_folder import ModelFacts
from dpo_core.prepare_report import Disk
from dpo_core.spec import TrainingSpec

STATES_KEPT = 2
"""Published checkpoints of a job that can be resumed from: the newest, and one more for a damaged disk."""

STATE_BYTES = 12
"""A trained parameter's float32 master weight and AdamW's two moments."""


def disk(training: TrainingSpec, model: ModelFacts, total_steps: int) -> Disk:
    """Of a resolved spec: it has no "auto" left."""
    trained = model.parameter_count if training.lora is None else adapter_parameters(model, training.lora)
    weights = trained * (2 if training.precision == "bfloat16" else 4)
    steps = {total_steps, *_every(training.checkpoint_steps, total_steps)}
    if training.early_stopping is not None:  # each evaluation that improves makes one
        steps.update(_every(training.evaluation_steps, total_steps))
    states = min(STATES_KEPT, len(steps)) * STATE_BYTES * trained
    kept = min(len(steps), training.keep_last + training.keep_best)
    most = min(len(steps), kept + 1)  # an old one goes when the new one is there
    return Disk(
        checkpoints=kept,
        model=weights,
        state=STATE_BYTES * trained,
        kept=kept * weights,
        peak=most * weights + states,
    )


def _every(interval: int | str, total_steps: int) -> range:
    if isinstance(interval, str):
        raise ValueError("the training spec must be resolved before its checkpoints are counted")
    return range(interval, total_steps + 1, interval)
