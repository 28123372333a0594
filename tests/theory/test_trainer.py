"""What the training loop minimises is the theory's loss: dpo_core's objective on sampled pairs of token ids."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from dpo_core import attention
from dpo_core.batches import Sampler, Share
from dpo_core.data.records import TokenPair
from dpo_core.objective import Packer, Preference
from dpo_core.preference_loss import PreferenceLoss
from dpo_core.scorer import Scorer
from dpo_core.spec import Way
from illustrated.policy import answer_log_probabilities, random_model
from illustrated.world import ANSWERS, BETA, Comparisons, divergence, optimum, rewards, sampled_comparisons, sequences


def objective_of(sample: Comparisons, count: int, way: Way) -> Preference:
    """The sample's judgements one by one, as a data file would hold them, against `random_model(1)`."""
    counts = (sample.weight * count).round().int()
    table, tokens = answer_log_probabilities(random_model(1)).detach(), sequences()
    prompt, chosen, rejected = (
        side.repeat_interleave(counts) for side in (sample.prompt, sample.chosen, sample.rejected)
    )
    pairs = [
        TokenPair(0, tokens[better], tokens[worse], chosen_prompt=1, rejected_prompt=1)
        for better, worse in zip(
            (prompt * len(ANSWERS) + chosen).tolist(), (prompt * len(ANSWERS) + rejected).tolist(), strict=True
        )
    ]
    assert len(pairs) == count
    reference = torch.stack([table[prompt, chosen], table[prompt, rejected]])
    packer = Packer(way, budget=2**20, chunk=2**20, device=torch.device("cpu"))
    return Preference(pairs, reference, packer, PreferenceLoss((("sigmoid", 1.0),), BETA))


def mean_loss(objective: Preference, model: Scorer, indices: list[int]) -> tuple[Tensor, dict[str, float]]:
    summed, sums = objective.loss_of(model, objective.micro_batch(Share(indices, counts=True, chunks=1)))
    return summed / objective.divisor(indices), objective.means(sums.tolist())


@pytest.mark.parametrize("way", get_args(Way))
def test_the_objective_is_the_theory_s_loss(way: Way) -> None:
    """All pairs of a sample in one batch: the same loss and the same gradient as the weighted table."""
    model, reference = random_model(2), answer_log_probabilities(random_model(1)).detach()
    sample = sampled_comparisons(rewards(), 500, seed=0)
    expected = sample.loss(answer_log_probabilities(model), reference, BETA)
    gradient = parameters_to_vector(torch.autograd.grad(expected, list(model.parameters())))
    if way != "padded":
        attention.register()
        model.causal.set_attn_implementation(attention.NAME)
    loss, _ = mean_loss(objective_of(sample, 500, way), model, list(range(500)))
    found = parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-13)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-13)


def test_steps_on_batches_of_pairs_approach_the_optimum() -> None:
    count = 20_000
    objective = objective_of(sampled_comparisons(rewards(), count, seed=0), count, "padded")
    model = random_model(1)
    reference = answer_log_probabilities(model).detach()
    best = optimum(reference, rewards(), BETA)
    sampler = Sampler(count, 400, seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=150)
    measured = []
    for step in range(150):
        loss, means = mean_loss(objective, model, sampler.batch(step))
        measured.append(means)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    assert measured[0]["loss"] == pytest.approx(math.log(2), abs=1e-12)
    # 0.35 at the optimum, with a deviation of 0.04 in a batch of 400
    assert measured[-1]["rewards/margins"] > 0.15
    before, after = divergence(best, reference), divergence(best, answer_log_probabilities(model).detach())
    assert before.min() > 0.1
    assert after.mean() < 0.02
