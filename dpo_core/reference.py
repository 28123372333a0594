"""Reference log-probabilities: computed once before the first update, then frozen into the run.

`start` asks the policy itself before its first update. That is right for all weights, for LoRA, and for
a start that is itself an adapter, and needs no second model in memory. (Switching a trained adapter off
would give the base instead, which is another model.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpo_core.errors import user_error
from dpo_core.models import load_frozen
from dpo_core.objective import Score
from dpo_core.packing import Batch
from dpo_core.scorer import Scorer
from dpo_core.spec import RunSpec

FILE_NAME = "reference.safetensors"


def other_model(run: RunSpec, dtype: torch.dtype, device: torch.device) -> Scorer:
    """The model that `training.reference` names, whole on every rank; freed when it is dropped.

    Raises:
        RunError: kind `user`; there is none, or it can't be loaded.
    """
    if run.reference is None:
        raise user_error(
            "reference_missing",
            f"training.reference is {run.training.reference!r}, but the run was given no such model. "
            "Use `start` or the id of a model.",
            param="training.reference",
        )
    return Scorer(load_frozen(run.reference, dtype)).to(device)


def score_of(scorer: Scorer, device: torch.device) -> Score:
    """Runs a model that is not trained."""

    def score(batch: Batch, chunks: int = 1, ranks_first: bool = False) -> tuple[Tensor, Tensor | None]:
        values: tuple[Tensor, Tensor | None] = scorer(batch.to(device), chunks, ranks_first)
        return values

    return score


def save(path: Path, values: Tensor) -> None:
    save_file({"log_probabilities": values.contiguous()}, path)


def load(path: Path, pairs: int, needed: Sequence[int]) -> Tensor:
    """The frozen [2, N] of an earlier attempt.

    Raises:
        RunError: kind `user`; N is not `pairs`, or one of the `needed` was not measured in that attempt.
    """
    values = load_file(path)["log_probabilities"]
    if values.shape[1] != pairs:
        raise user_error(
            "resume_other_data",
            f"The checkpoint was made with {values.shape[1]} pairs, this run has {pairs}. Resume with the same files.",
            param="training_file",
        )
    if unknown := int(values[0, list(needed)].isnan().sum()):
        raise user_error(
            "resume_more_steps",
            f"The run that made the checkpoint had no use for {unknown} of the pairs that this one trains on, so their "
            "reference was not measured, and can't be any more. Resume with the same max_steps and epochs.",
            param="training.max_steps",
        )
    return values
