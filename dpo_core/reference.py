"""Reference log-probabilities: computed once before the first update, then frozen into the run.

`start` asks the policy itself before its first update. That is right for all weights, for LoRA, and for
a start that is itself an adapter, and needs no second model in memory. (Switching a trained adapter off
would give the base instead, which is another model.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpo_core.batches import rows_of
from dpo_core.engine import World
from dpo_core.errors import user_error
from dpo_core.models import load_frozen
from dpo_core.objective import LogitsOf, score
from dpo_core.records import TokenItem
from dpo_core.spec import RunSpec

FILE_NAME = "reference.safetensors"


def log_probabilities(
    logits_of: LogitsOf,
    items: Sequence[TokenItem],
    micro_batch_size: int,
    world: World,
    measured: Callable[[float], None] = lambda _: None,
) -> Tensor:
    """[2, N] float64 on the CPU: row 0 chosen, row 1 rejected. All ranks call it and share the work.

    `measured` is told the share that is done, after every forward pass.
    """
    pairs = [rows_of(item) for item in items]
    rows = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    return score(logits_of, rows, 2 * micro_batch_size, world, measured)[0].view(2, -1)


def other_model(run: RunSpec, dtype: torch.dtype, device: torch.device) -> LogitsOf:
    """The model that `training.reference` names, whole on every rank; freed when the function is dropped.

    Raises:
        RunError: kind `user`; there is none, or it can't be loaded.
    """
    if run.reference is None:
        raise user_error(
            "reference_missing",
            f"The sigmoid loss needs a reference, but training.reference is {run.training.reference!r}. "
            "Use `start` or the id of a model.",
            param="training.reference",
        )
    model = cast(nn.Module, load_frozen(run.reference, dtype)).to(device)

    def logits_of(tokens: Tensor, first: int) -> Tensor:
        kept = tokens.shape[1] - first + 1
        logits: Tensor = model(input_ids=tokens, logits_to_keep=kept, use_cache=False).logits[:, -kept:-1]
        return logits

    return logits_of


def save(path: Path, values: Tensor) -> None:
    save_file({"log_probabilities": values.contiguous()}, path)


def load(path: Path, pairs: int) -> Tensor:
    """The frozen [2, N] of an earlier attempt.

    Raises:
        RunError: kind `user`; N is not `pairs`.
    """
    values = load_file(path)["log_probabilities"]
    if values.shape[1] != pairs:
        raise user_error(
            "resume_other_data",
            f"The checkpoint was made with {values.shape[1]} pairs, this run has {pairs}. Resume with the same files.",
            param="training_file",
        )
    return values
