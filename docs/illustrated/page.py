"""docs/dpo.md: the template page.md with every number filled in from dpo_core and the experiment."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from string import Template

import torch
from torch import Tensor

from dpo_core.losses import gradient_weight, implicit_reward, preference_probability, sigmoid_loss
from illustrated.experiment import STEPS, Results
from illustrated.figures import figures
from illustrated.world import BETA, LETTERS, expected_divergence, log_partition, objective

DOCS = Path(__file__).parents[1]
TEMPLATE = Path(__file__).with_name("page.md")


class Page(Template):
    """`@{name}` is a number: `$` and `{` belong to the formulas."""

    delimiter = "@"


def documents(results: Results) -> dict[Path, str]:
    """What docs/dpo.md and its figures should hold, by path below docs."""
    page = Page(TEMPLATE.read_text(encoding="utf-8"))
    values = two_plus_two() | small_world(results)
    if unused := values.keys() - set(page.get_identifiers()):
        raise ValueError(
            f"{TEMPLATE.name} has no place for {', '.join(sorted(unused))}: name it there or don't make it."
        )
    documents = {Path("dpo.md"): page.substitute(values)}
    return documents | {Path("figures") / name: text for name, text in figures(results).items()}


def two_plus_two() -> dict[str, str]:
    """The smallest example: two answers, before and after a step, at β = 0.1."""
    reference, policy, beta = numbers(-1.0, -2.0), numbers(-0.8, -2.5), 0.1
    chosen, rejected = implicit_reward(policy, reference, beta)
    ratio = policy - reference
    slope = numerical_slope(lambda shift: pair_loss(policy + numbers(shift, 0.0), reference, beta))
    weight = gradient_weight(chosen, rejected)
    probabilities = {
        f"{name}_{answer}": percent(table[place])
        for name, table in (("reference", reference), ("policy", policy))
        for place, answer in enumerate(("chosen", "rejected"))
    }
    leads = preference_probability(numbers(1.0, 3.0), numbers(0.0, 0.0)).log()
    return probabilities | {
        "lead_of_one": percent(leads[0]),
        "lead_of_three": percent(leads[1]),
        "ratio_chosen": decimal(ratio[0], 1, plus=True),
        "ratio_rejected": decimal(ratio[1], 1, plus=True),
        "reward_chosen": decimal(chosen, 2, plus=True),
        "reward_rejected": decimal(rejected, 2, plus=True),
        "delta": decimal(ratio[0] - ratio[1], 1),
        "margin": decimal(chosen - rejected, 2),
        "preference": decimal(preference_probability(chosen, rejected), 3),
        "loss": decimal(pair_loss(policy, reference, beta), 4),
        "loss_at_start": decimal(pair_loss(reference, reference, beta), 4),
        "weight": decimal(weight, 4),
        "slope": decimal(-beta * weight, 6),
        "numerical_slope": decimal(slope, 6),
    }


def small_world(results: Results) -> dict[str, str]:
    near = next(step for step, table in enumerate(results.tables) if results.distance(table) < 1e-3)
    before, after = results.reference[0, 1].exp(), results.trained[0, 1].exp()
    best = BETA * log_partition(results.reference, results.reward, BETA)
    reached = objective(results.trained, results.reference, results.reward, BETA)
    start = objective(results.reference, results.reference, results.reward, BETA)
    rows = [
        f"| {letter} | {decimal(start[place], 4)} | {decimal(reached[place], 4)} | {decimal(best[place], 4)} |"
        for place, letter in enumerate(LETTERS)
    ]
    samples = [
        f"| {count:,} | {significant(mean(found))} | "
        f"{significant(expected_divergence(results.optimum, results.reward, BETA, count))} |"
        for count, found in results.sampled.items()
    ]
    return {
        "world_beta": f"{BETA}",
        "steps": str(STEPS),
        "distance_at_start": decimal(results.distance(results.reference), 3),
        "step_near": str(near),
        "step_very_near": str(next(s for s, table in enumerate(results.tables) if results.distance(table) < 1e-6)),
        "good_reward": decimal(results.reward[0, 1], 1, plus=True),
        "average_reward": decimal(start[0], 2, plus=True),
        "good_before": percent(before.log()),
        "good_after": percent(after.log()),
        "objective_rows": "\n".join(rows),
        "sample_rows": "\n".join(samples),
    }


def pair_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    return sigmoid_loss(policy, reference, beta=beta)


def numerical_slope(function: Callable[[float], Tensor], step: float = 1e-5) -> float:
    """The central difference at 0."""
    return ((function(step) - function(-step)) / (2 * step)).item()


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def decimal(value: Tensor | float, digits: int, *, plus: bool = False) -> str:
    """With a true minus sign."""
    return f"{float(value):{'+' if plus else ''}.{digits}f}".replace("-", "−")


def percent(log_probability: Tensor) -> str:
    return f"{100 * log_probability.exp().item():.1f} %"


def significant(value: float) -> str:
    """Two significant digits without an exponent."""
    return f"{value:.{1 - math.floor(math.log10(value))}f}"
