"""The numbers of `metrics.jsonl`: per-item values, their sums over a batch, and the means that are written.

docs/metrics.md defines every name. Sums are plain float64 vectors, so that one collective a step carries
all of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpo_core.losses import gradient_weight, implicit_reward, preference_probability

PREFERENCE_SUMS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "bradley_terry",
    "gradient_weight",
    "logps/chosen",
    "logps/rejected",
    "chosen_tokens",
    "rejected_tokens",
    "pairs",
)
TIE = 1e-4
"""Nats: log-ratios closer than that are equal up to the rounding of float32 sums over some hundred tokens."""
SUPERVISED_SUMS = ("loss", "correct_tokens", "completion_tokens", "examples")


def preference_sums(losses: Tensor, policy: Tensor, reference: Tensor, tokens: Tensor, beta: float) -> Tensor:
    """Sums over pairs, in the order of PREFERENCE_SUMS.

    Args:
        losses: [B] float64.
        policy, reference: [2, B] float64 log-probability sums; row 0 chosen, row 1 rejected.
        tokens: [2, B] numbers of response tokens.

    Returns:
        [12] float64.
    """
    rewards = implicit_reward(policy, reference, beta)
    margins = rewards[0] - rewards[1]
    ties = margins.abs() <= TIE * beta
    accuracies = torch.where(ties, 0.5, (margins > 0).double())
    per_pair = (
        losses,
        rewards[0],
        rewards[1],
        margins,
        accuracies,
        preference_probability(rewards[0], rewards[1]),
        gradient_weight(rewards[0], rewards[1]),
        policy[0],
        policy[1],
        tokens[0],
        tokens[1],
        torch.ones_like(losses),
    )
    return torch.stack([value.double().sum() for value in per_pair])


def supervised_sums(log_probabilities: Tensor, correct: Tensor, tokens: Tensor) -> Tensor:
    """Sums over examples, in the order of SUPERVISED_SUMS.

    Args:
        log_probabilities: [B] float64, sums over the completion.
        correct: [B] numbers of completion tokens that the model ranks first.
        tokens: [B] numbers of completion tokens.

    Returns:
        [4] float64.
    """
    count = torch.tensor(float(len(tokens)), dtype=torch.float64, device=tokens.device)
    return torch.stack([-log_probabilities.double().sum(), correct.double().sum(), tokens.double().sum(), count])


def preference_means(sums: list[float]) -> dict[str, float]:
    """Means per pair; the two `_per_token` ones are means per response token."""
    named = dict(zip(PREFERENCE_SUMS, sums, strict=True))
    pairs = named.pop("pairs")
    chosen_tokens, rejected_tokens = named.pop("chosen_tokens"), named.pop("rejected_tokens")
    means = {name: value / pairs for name, value in named.items()}
    means["logps/chosen_per_token"] = named["logps/chosen"] / chosen_tokens
    means["logps/rejected_per_token"] = named["logps/rejected"] / rejected_tokens
    return means


def supervised_means(sums: list[float]) -> dict[str, float]:
    """Means per completion token."""
    named = dict(zip(SUPERVISED_SUMS, sums, strict=True))
    loss = named["loss"] / named["completion_tokens"]
    return {
        "loss": loss,
        "token_accuracy": named["correct_tokens"] / named["completion_tokens"],
        # exp overflows a float at 709; a loss so large says the same
        "perplexity": math.exp(min(loss, 700.0)),
    }
