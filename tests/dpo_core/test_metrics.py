from __future__ import annotations

import math

import pytest
import torch

from dpo_core.bootstrap import intervals
from dpo_core.metrics import (
    WEIGHT_FIFTHS,
    preference_intervals,
    preference_means,
    preference_values,
    supervised_intervals,
    supervised_means,
    supervised_values,
)


def test_preference_metrics_by_hand() -> None:
    # Pair 1 is "2+2" of the design page (margin 0.07); pair 2 is untouched, a tie.
    policy = torch.tensor([[-0.8, -3.0], [-2.5, -4.0]], dtype=torch.float64)
    reference = torch.tensor([[-1.0, -3.0], [-2.0, -4.0]], dtype=torch.float64)
    tokens = torch.tensor([[1.0, 4.0], [1.0, 3.0]], dtype=torch.float64)
    losses = torch.tensor([0.6587596, math.log(2)], dtype=torch.float64)
    means = preference_means(preference_values(losses, policy, reference, tokens, 0.1).sum(1).tolist())
    assert means == pytest.approx(
        {
            "loss": 0.6759534,
            "rewards/chosen": 0.01,
            "rewards/rejected": -0.025,
            "rewards/margins": 0.035,
            "rewards/accuracies": 0.75,
            "bradley_terry": (0.5174929 + 0.5) / 2,
            "gradient_weight": (0.4825071 + 0.5) / 2,
            "gradient_weight/0.0-0.2": 0.0,
            "gradient_weight/0.2-0.4": 0.0,
            "gradient_weight/0.4-0.6": 1.0,
            "gradient_weight/0.6-0.8": 0.0,
            "gradient_weight/0.8-1.0": 0.0,
            "kl_estimate": (-0.2 + 0.5) / 2 / 2,
            "logps/chosen": -1.9,
            "logps/rejected": -3.25,
            "logps/chosen_per_token": -3.8 / 5,
            "logps/rejected_per_token": -6.5 / 4,
        },
        abs=1e-6,
    )


def test_gradient_weights_are_counted_in_fifths() -> None:
    # σ(r̂_l − r̂_w) for margins of 5, 1, 0, −1 and −5, and of −1e6, where it is 1
    policy = torch.tensor([[5.0, 1.0, 0.0, -1.0, -5.0, -1e6], [0.0] * 6], dtype=torch.float64)
    tokens = torch.ones(2, 6)
    values = preference_values(torch.zeros(6), policy, torch.zeros(2, 6, dtype=torch.float64), tokens, 1.0)
    means = preference_means(values.sum(1).tolist())
    assert [round(6 * means[name]) for name in WEIGHT_FIFTHS] == [1, 1, 1, 1, 2]


def test_what_float32_cannot_tell_apart_is_a_tie() -> None:
    policy = torch.tensor([[-1.0, -1.0], [-1.00009, -1.0002]], dtype=torch.float64)
    tokens, losses = torch.ones(2, 2), torch.zeros(2)
    means = preference_means(preference_values(losses, policy, -torch.ones(2, 2), tokens, 5.0).sum(1).tolist())
    assert means["rewards/accuracies"] == 0.75


def test_sums_of_parts_add_up_to_the_sum_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (-torch.rand(2, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    losses, tokens = torch.rand(6, generator=generator, dtype=torch.float64), torch.ones(2, 6, dtype=torch.float64)
    whole = preference_values(losses, policy, reference, tokens, 0.5).sum(1)
    parts = [
        preference_values(losses[part], policy[:, part], reference[:, part], tokens[:, part], 0.5).sum(1)
        for part in (slice(0, 1), slice(1, 6), slice(6, 6))
    ]
    assert torch.stack(parts).sum(0).tolist() == pytest.approx(whole.tolist())


def test_supervised_metrics_by_hand() -> None:
    values = supervised_values(torch.tensor([-1.0, -3.0]), torch.tensor([2, 1]), torch.tensor([2, 3]))
    assert supervised_means(values.sum(1).tolist()) == pytest.approx(
        {"loss": 0.8, "token_accuracy": 0.6, "perplexity": math.exp(0.8)}
    )


def test_a_huge_supervised_loss_stays_a_number() -> None:
    assert math.isfinite(supervised_means([1e6, 0.0, 1.0, 1.0])["perplexity"])


def test_the_means_that_runs_are_compared_by_have_intervals() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (-torch.rand(2, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    losses, tokens = torch.rand(40, generator=generator, dtype=torch.float64), torch.ones(2, 40, dtype=torch.float64)
    values = preference_values(losses, policy, reference, tokens, 0.5)
    means, ends = preference_means(values.sum(1).tolist()), preference_intervals(values)
    names = ("loss", "rewards/margins", "rewards/accuracies")
    assert set(ends) == {f"{name}/{end}" for name in names for end in ("low", "high")}
    for name in names:
        assert ends[f"{name}/low"] < means[name] < ends[f"{name}/high"]
    assert [ends["loss/low"], ends["loss/high"]] == intervals(losses[None], torch.ones(40))[0].tolist()


def test_supervised_intervals_are_of_means_per_token() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 30, (50,), generator=generator)
    correct = (tokens * torch.rand(50, generator=generator)).long()
    values = supervised_values(-torch.rand(50, generator=generator) * tokens, correct, tokens)
    means, ends = supervised_means(values.sum(1).tolist()), supervised_intervals(values)
    assert set(ends) == {"loss/low", "loss/high", "token_accuracy/low", "token_accuracy/high"}
    for name in ("loss", "token_accuracy"):
        assert ends[f"{name}/low"] < means[name] < ends[f"{name}/high"]
