from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dpo_core.bootstrap import intervals


def interval(values: Tensor) -> tuple[float, float]:
    low, high = intervals(values[None], torch.ones(len(values)))[0].tolist()
    return low, high


@pytest.mark.parametrize("kind", ["margins", "losses", "accuracies"])
def test_intervals_hold_the_true_mean_as_often_as_they_say(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    draws = {
        "margins": (torch.randn(300, 100, generator=generator, dtype=torch.float64), 0.0),
        "losses": (-torch.rand(300, 100, generator=generator, dtype=torch.float64).log(), 1.0),  # skewed: exponential
        "accuracies": ((torch.rand(300, 100, generator=generator) < 0.7).double(), 0.7),
    }
    samples, mean = draws[kind]
    # 300 samples as 300 metrics of the same 100 items: one call
    found = intervals(samples, torch.ones(100))
    holding = ((found[:, 0] <= mean) & (mean <= found[:, 1])).double().mean().item()
    # 0.95 less what a percentile interval of 100 skewed values lacks, give or take 3 standard errors of 300 draws
    assert 0.90 <= holding <= 0.98


def test_the_interval_of_many_values_is_the_normal_one() -> None:
    values = torch.randn(5_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    low, high = interval(values)
    mean, error = values.mean().item(), values.std().item() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.15 * error)


def test_equal_values_leave_no_doubt_and_one_value_has_none_to_tell_of() -> None:
    assert interval(torch.full((50,), 0.25, dtype=torch.float64)) == pytest.approx((0.25, 0.25))
    assert interval(torch.tensor([3.0])) == (3.0, 3.0)


def test_a_ratio_is_resampled_by_its_items() -> None:
    # Every token of an item has that item's value: an item of 90 tokens moves the ratio more than one of 10.
    values, tokens = torch.tensor([1.0, 0.0]), torch.tensor([90.0, 10.0])
    found = intervals((values * tokens)[None], tokens)
    assert found.tolist() == [[0.0, 1.0]]
    both = intervals(torch.stack([values * tokens, tokens]), tokens)
    assert both[1].tolist() == [1.0, 1.0]


def test_the_same_values_have_the_same_interval_whatever_was_drawn_before() -> None:
    values = torch.rand(2, 700, generator=torch.Generator().manual_seed(3))
    state = torch.get_rng_state()
    first = intervals(values, torch.ones(700))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(10)
    assert torch.equal(intervals(values, torch.ones(700)), first)
