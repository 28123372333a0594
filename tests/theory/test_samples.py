"""With a sample of the comparisons, DPO comes as near to the optimum as the sample allows."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean

import pytest
import torch

from illustrated.experiment import Results
from illustrated.world import BETA, all_comparisons, expected_divergence, rewards, sampled_comparisons


def test_more_comparisons_lead_nearer(results: Results) -> None:
    distances = [mean(found) for found in results.sampled.values()]
    assert all(after < before / 3 for before, after in pairwise(distances))  # ten times the data
    assert distances[-1] < 1e-3


def test_as_near_as_maximum_likelihood_foretells(results: Results) -> None:
    # A mean of 3 samples × 24 degrees of freedom: a factor of 2 is more than four standard deviations.
    for count, found in results.sampled.items():
        foretold = expected_divergence(results.optimum, results.reward, BETA, count)
        assert foretold / 2 < mean(found) < foretold * 2


def test_two_answers_are_foretold_by_hand() -> None:
    # π* = (1/2, 1/2) and equal rewards: one judgement has F = 1/4 for r_0 − r_1, so its variance is 4/n. That of
    # δ_0 − δ_1 is 4/(n β²), Var_π*[δ] = ¼ (δ_0 − δ_1)², and half of its mean is 1/(2 n β²).
    even = torch.zeros(1, 2, dtype=torch.float64)
    assert expected_divergence(even - torch.tensor(2.0).log(), even, 0.5, 100) == pytest.approx(1 / (2 * 100 * 0.25))


def test_samples_are_shares_of_all_comparisons() -> None:
    every, sample = all_comparisons(rewards()), sampled_comparisons(rewards(), 400_000, seed=3)
    assert sample.weight.sum().item() == pytest.approx(1)
    # Binomial: a share p of n draws has the deviation sqrt(p (1 - p) / n).
    deviation = (every.weight * (1 - every.weight) / 400_000).sqrt()
    assert ((sample.weight - every.weight).abs() / deviation).max() < 4.5
    again = sampled_comparisons(rewards(), 400_000, seed=3)
    assert torch.equal(sample.weight, again.weight)
