"""How exact a packed row is in bfloat16 on a GPU: against float64 on the CPU, beside padded rows.

What the model's own attention loses on padded rows is what bfloat16 itself costs; packing should add nothing to it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.lengths import like_hh_rlhf
from benchmarks.shape import Shape, write_model
from benchmarks.sharing import token_pair
from benchmarks.workload import SEED
from dpo_core import attention
from dpo_core.data.records import TokenItem
from dpo_core.losses import sigmoid_loss
from dpo_core.packing import arrange
from dpo_core.scorer import Scorer
from dpo_core.spec import Device, Way


@dataclass(frozen=True, slots=True)
class Error:
    """Of one way of packing, against float64."""

    way: Way
    token: float
    """Mean absolute error of a token's log-probability."""

    sequence: float
    """Largest error of a sequence's log-probability."""

    gradient: float
    """‖g − exact‖ / ‖exact‖ of the loss's gradient."""


def errors(shape: Shape, pairs: int, device: Device, folder: Path) -> list[Error]:
    """Of padded rows and of shared prompts, on pairs with hh-rlhf's lengths and random words."""
    write_model(shape, folder, seed=SEED)
    words = random.Random(SEED)
    items: list[TokenItem] = [token_pair(lengths, shape.vocabulary, words) for lengths in like_hh_rlhf(pairs, SEED)]
    exact = measure(folder, items, "padded", torch.device("cpu"), torch.float64)
    found = []
    for way in ("padded", "shared"):
        tokens, sums, gradient = measure(folder, items, way, torch.device(device), torch.bfloat16)
        found.append(
            Error(
                way,
                token=float((tokens - exact[0]).abs().mean()),
                sequence=float((sums - exact[1]).abs().max()),
                gradient=float((gradient - exact[2]).norm() / exact[2].norm()),
            )
        )
    return found


def measure(
    folder: Path, items: list[TokenItem], way: Way, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of tokens and of sequences, and the DPO loss's gradient, on the CPU in float64.

    bfloat16 is autocast's: weights stay float32, as under ZeRO 0.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.promote_types(dtype, torch.float32))
    model.to(device)
    if way != "padded":
        attention.register()
        model.set_attn_implementation(attention.NAME)
    batch = arrange(items, way).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
        tokens = Scorer(model)(batch)[0]
    sums = batch.sums(tokens)
    policy = sums.view(-1, 2).T
    loss = sigmoid_loss(policy, torch.zeros_like(policy), beta=0.1).mean()
    torch.autograd.backward(loss)
    gradient = torch.cat([it.grad.flatten().double() for it in model.parameters() if it.grad is not None])
    return tokens[batch.entries].detach().double().cpu(), sums.detach().cpu(), gradient.cpu()
