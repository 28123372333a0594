"""The numbers of `metrics.jsonl`: per-item values, and from their sums over a batch the means that are written.

docs/metrics.md defines every name. Sums are plain float64 vectors, so that one collective a step carries
all of them. A whole split's means have intervals beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dpo_core.bootstrap import intervals
from dpo_core.losses import gradient_weight, implicit_reward, preference_probability

WEIGHT_FIFTHS = tuple(f"gradient_weight/{low / 10:.1f}-{(low + 2) / 10:.1f}" for low in range(0, 10, 2))
"""The middle one holds the pairs that the policy hardly tells apart yet."""

PREFERENCE_VALUES = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "bradley_terry",
    "gradient_weight",
    *WEIGHT_FIFTHS,
    "kl_estimate",
    "logps/chosen",
    "logps/rejected",
    "chosen_tokens",
    "rejected_tokens",
    "pairs",
)
TIE = 1e-4
"""Nats: log-ratios closer than that are equal up to the rounding of float32 sums over some hundred tokens."""
SUPERVISED_VALUES = ("loss", "correct_tokens", "completion_tokens", "examples")


def preference_values(losses: Tensor, policy: Tensor, reference: Tensor, tokens: Tensor, beta: float) -> Tensor:
    """What is known of each pair, in the order of PREFERENCE_VALUES.

    Args:
        losses: [B] float64.
        policy, reference: [2, B] float64 log-probability sums; row 0 chosen, row 1 rejected.
        tokens: [2, B] numbers of response tokens.

    Returns:
        [18, B] float64.
    """
    rewards = implicit_reward(policy, reference, beta)
    margins = rewards[0] - rewards[1]
    ties = margins.abs() <= TIE * beta
    accuracies = torch.where(ties, 0.5, (margins > 0).double())
    weights = gradient_weight(rewards[0], rewards[1])
    fifths = (weights * len(WEIGHT_FIFTHS)).long().clamp(max=len(WEIGHT_FIFTHS) - 1)
    per_pair = (
        losses,
        rewards[0],
        rewards[1],
        margins,
        accuracies,
        preference_probability(rewards[0], rewards[1]),
        weights,
        *(fifths == place for place in range(len(WEIGHT_FIFTHS))),
        (reference - policy).mean(0),
        policy[0],
        policy[1],
        tokens[0],
        tokens[1],
        torch.ones_like(losses),
    )
    return torch.stack([value.double() for value in per_pair])


def supervised_values(log_probabilities: Tensor, correct: Tensor, tokens: Tensor) -> Tensor:
    """What is known of each example, in the order of SUPERVISED_VALUES.

    Args:
        log_probabilities: [B] float64, sums over the completion.
        correct: [B] numbers of completion tokens that the model ranks first.
        tokens: [B] numbers of completion tokens.

    Returns:
        [4, B] float64.
    """
    per_example = (-log_probabilities, correct, tokens, torch.ones_like(log_probabilities))
    return torch.stack([value.double() for value in per_example])


def preference_means(sums: list[float]) -> dict[str, float]:
    """Means per pair; the two `_per_token` ones are means per response token."""
    named = dict(zip(PREFERENCE_VALUES, sums, strict=True))
    pairs = named.pop("pairs")
    chosen_tokens, rejected_tokens = named.pop("chosen_tokens"), named.pop("rejected_tokens")
    means = {name: value / pairs for name, value in named.items()}
    means["logps/chosen_per_token"] = named["logps/chosen"] / chosen_tokens
    means["logps/rejected_per_token"] = named["logps/rejected"] / rejected_tokens
    return means


def supervised_means(sums: list[float]) -> dict[str, float]:
    """Means per completion token."""
    named = dict(zip(SUPERVISED_VALUES, sums, strict=True))
    loss = named["loss"] / named["completion_tokens"]
    return {
        "loss": loss,
        "token_accuracy": named["correct_tokens"] / named["completion_tokens"],
        # exp overflows a float at 709; a loss so large says the same
        "perplexity": math.exp(min(loss, 700.0)),
    }


def preference_intervals(values: Tensor) -> dict[str, float]:
    """95 % intervals of means per pair, from the values [18, N] of a whole split."""
    named = dict(zip(PREFERENCE_VALUES, values, strict=True))
    judged = ("loss", "rewards/margins", "rewards/accuracies")
    return _ends(judged, intervals(torch.stack([named[name] for name in judged]), named["pairs"]))


def supervised_intervals(values: Tensor) -> dict[str, float]:
    """95 % intervals of means per completion token, from the values [4, N] of a whole split; examples are drawn."""
    loss, correct, tokens, _ = values
    return _ends(("loss", "token_accuracy"), intervals(torch.stack([loss, correct]), tokens))


def _ends(names: Sequence[str], found: Tensor) -> dict[str, float]:
    return {
        f"{name}/{end}": value
        for name, interval in zip(names, found.tolist(), strict=True)
        for end, value in zip(("low", "high"), interval, strict=True)
    }
