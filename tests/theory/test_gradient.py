"""The gradient is −β σ(r̂_l − r̂_w) (∇log π(y_w|x) − ∇log π(y_l|x)), by finite differences in float64.

The formula: arXiv:2305.18290, section 4, the gradient of equation 7.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from dpo_core.losses import gradient_weight, implicit_reward
from dpo_core.scorer import Scorer
from illustrated.policy import answer_log_probabilities, random_model, train
from illustrated.world import BETA, Comparisons, all_comparisons, rewards


@pytest.fixture(scope="module")
def on_the_way() -> tuple[Scorer, Tensor]:
    """A policy in the middle of its training, where weights differ from one half, and its reference."""
    model = random_model(1)
    return model, train(model, all_comparisons(rewards()), BETA, 10)[0]


def one_pair(prompt: int, chosen: int, rejected: int) -> Comparisons:
    return Comparisons(*(torch.tensor([index]) for index in (prompt, chosen, rejected)), torch.ones(1).double())


def by_formula(model: Scorer, reference: Tensor, comparisons: Comparisons) -> Tensor:
    """The gradient for all weights of the model, [parameters]; only ∇log π comes from autograd."""
    policy = answer_log_probabilities(model)
    implicit = implicit_reward(policy.detach(), reference, BETA)
    chosen, rejected = (comparisons.prompt, comparisons.chosen), (comparisons.prompt, comparisons.rejected)
    factor = -BETA * gradient_weight(implicit[chosen], implicit[rejected])
    pulled = (comparisons.weight * factor * (policy[chosen] - policy[rejected])).sum()
    return parameters_to_vector(torch.autograd.grad(pulled, list(model.parameters())))


def by_differences(model: Scorer, reference: Tensor, comparisons: Comparisons, directions: Tensor) -> Tensor:
    """Slopes of the loss along `directions` [D, parameters], by central differences: [D]."""
    start, step = parameters_to_vector(model.parameters()).detach(), 1e-5
    slopes = []
    with torch.no_grad():
        for direction in directions:
            ends = []
            for sign in (1, -1):
                vector_to_parameters(start + sign * step * direction, model.parameters())
                ends.append(comparisons.loss(answer_log_probabilities(model), reference, BETA))
            slopes.append((ends[0] - ends[1]) / (2 * step))
        vector_to_parameters(start, model.parameters())
    return torch.stack(slopes)


@pytest.mark.parametrize(
    "comparisons",
    [all_comparisons(rewards()), one_pair(0, 2, 0), one_pair(0, 0, 2), one_pair(2, 3, 5)],
    ids=["every pair", "ranked rightly", "ranked wrongly", "another prompt"],
)
def test_gradient_is_the_formula(on_the_way: tuple[Scorer, Tensor], comparisons: Comparisons) -> None:
    model, reference = on_the_way
    gradient = by_formula(model, reference, comparisons)
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(8, len(gradient), generator=generator, dtype=torch.float64)
    # Single weights too, those with the largest slopes: an error in one place is seen there.
    single = torch.eye(len(gradient), dtype=torch.float64)[gradient.abs().topk(8).indices]
    directions = torch.cat([dense / dense.norm(dim=1, keepdim=True), single])
    slopes = by_differences(model, reference, comparisons, directions)
    assert gradient.norm() > 1e-3
    torch.testing.assert_close(slopes, directions @ gradient, rtol=1e-6, atol=1e-9)


def test_a_pair_ranked_wrongly_pulls_harder(on_the_way: tuple[Scorer, Tensor]) -> None:
    """The same two answers with the label turned round: opposite gradients, in proportion to their weights."""
    model, reference = on_the_way
    implicit = implicit_reward(answer_log_probabilities(model).detach(), reference, BETA)
    right, wrong = (by_formula(model, reference, pair) for pair in (one_pair(0, 2, 0), one_pair(0, 0, 2)))
    weight = gradient_weight(implicit[0, 2], implicit[0, 0])
    assert weight < 0.45
    torch.testing.assert_close(right / weight, -wrong / (1 - weight))
