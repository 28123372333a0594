"""The figures of docs/dpo.md, each from dpo_core's own functions or from the experiment's results."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

import torch

from dpo_core.losses import gradient_weight, implicit_reward, sigmoid_loss
from illustrated.experiment import SAMPLE_SIZES, Results
from illustrated.svg import Axes, Figure, Point, Scale, Shape
from illustrated.world import ANSWERS, BETA, LETTERS, divergence, expected_divergence, log_partition, optimum

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def figures(results: Results) -> dict[str, str]:
    """SVG text by file name."""
    return {
        "loss.svg": loss().render(),
        "beta.svg": trade(results).render(),
        "optimum.svg": distributions(results).render(),
        "rewards.svg": recovered(results).render(),
        "convergence.svg": convergence(results).render(),
    }


def loss() -> Figure:
    """The DPO loss and its gradient weight against the margin."""
    figure = Figure(760, 330, "The DPO loss and its gradient weight against the reward margin")
    margins = torch.linspace(-6, 6, 97, dtype=torch.float64)
    nothing = torch.zeros_like(margins)
    # With β = 1 and the rest at zero, the policy's log-probability of the chosen answer is the margin.
    losses = sigmoid_loss(torch.stack([margins, nothing]), torch.zeros(2, len(margins)), beta=1.0)
    weights = gradient_weight(margins, nothing)

    left = Axes(figure, Scale((-6, 6), (64, 364)), Scale((0, 6), (270, 44)))
    left.y_ticks((value, str(value)) for value in range(0, 7, 2))
    right = Axes(figure, Scale((-6, 6), (444, 744)), Scale((0, 1), (270, 44)))
    right.y_ticks([(0, "0"), (0.25, "¼"), (0.5, "½"), (0.75, "¾"), (1, "1")])
    for axes in (left, right):
        axes.x_ticks((value, signed(value)) for value in range(-6, 7, 2))
    left.frame("Loss of a pair: −log σ(margin)", "margin r̂(chosen) − r̂(rejected)", "loss, nats")
    left.curve(pairs(margins, losses), "blue")
    left.mark(0, losses[48].item(), "circle", "fill-blue")
    left.note(0, losses[48].item(), "untrained: ln 2", (8, -8))
    left.note(-4, 5.2, "wrong order: about −margin")
    right.frame("Its gradient weight: σ(−margin)", "margin r̂(chosen) − r̂(rejected)", "weight")
    right.curve(pairs(margins, weights), "orange")
    right.mark(0, 0.5, "circle", "fill-orange")
    right.note(0, 0.5, "untrained: ½", (9, -6))
    right.note(-5.8, 0.66, "wrong order: full pull")
    right.note(6, 0.3, "right order: lets go", (-4, 0), "end")
    return figure


def trade(results: Results) -> Figure:
    """What each β buys: the optimum's reward against its distance from the reference, the mean over prompts."""
    figure = Figure(760, 360, "Expected reward of the optimum against its divergence from the reference, for every β")
    reached: list[tuple[float, Point]] = []
    for beta in [32 * 2 ** (-step / 8) for step in range(73)]:
        policy = optimum(results.reference, results.reward, beta)
        spent = divergence(policy, results.reference).mean().item()
        reached.append((beta, (spent, (policy.exp() * results.reward).sum(-1).mean().item())))
    start = (0.0, (results.reference.exp() * results.reward).sum(-1).mean().item())
    axes = Axes(figure, Scale((0, 2.4), (64, 730)), Scale((0, 1), (300, 44)))
    axes.x_ticks((step * 0.4, f"{step * 0.4:.1f}") for step in range(7))
    axes.y_ticks((step * 0.2, signed(step * 0.2, 1)) for step in range(6))
    axes.frame("The optimum at every β", "KL(π* ‖ π_ref_): how far it went, nats", "E[r]: what it earns")
    axes.curve([start, *(point for _, point in reached)], "blue")
    axes.mark(*start, "square", "fill-grey")
    axes.note(*start, "β = ∞: the reference itself", (12, 2))
    for beta, point in reached[32::8]:
        axes.mark(*point, "circle", "fill-blue")
        axes.note(*point, f"β = {beta:g}", (8, 17))
    return figure


def distributions(results: Results) -> Figure:
    """Every answer's probability under the reference, the optimum and the trained policy."""
    figure = Figure(760, 640, "Probabilities of all answers: reference, closed-form optimum, trained policy")
    legend(figure, 24)
    for prompt, letter in enumerate(LETTERS):
        top = 76 + 190 * prompt
        axes = Axes(figure, Scale((-0.5, 8.5), (64, 744)), Scale((0, 0.4), (top + 112, top)))
        axes.y_ticks([(0, "0"), (0.2, "20 %"), (0.4, "40 %")])
        axes.frame(f"Prompt “{letter}”", "", "probability")
        for place, answer in enumerate(ANSWERS):
            bottom, middle = axes.y(0), axes.x(place)
            before, after = (table[prompt, place].exp().item() for table in (results.reference, results.optimum))
            figure.bar(middle - 21, axes.y(before), 19, bottom, "fill-grey")
            figure.bar(middle + 2, axes.y(after), 19, bottom, "fill-blue")
            reached = results.trained[prompt, place].exp().item()
            figure.mark((middle + 11.5, axes.y(reached)), "diamond", "fill-orange")
            figure.text((middle, bottom + 18), answer, "", "middle")
            reward = results.reward[prompt, place].item()
            figure.text((middle, bottom + 35), signed(reward, 1), "soft small", "middle")
        figure.text((56, axes.y(0) + 35), "reward", "soft small", "end")
    return figure


def legend(figure: Figure, top: float) -> None:
    figure.bar(64, top - 10, 12, top + 2, "fill-grey")
    figure.text((82, top), "reference π_ref_")
    figure.bar(216, top - 10, 12, top + 2, "fill-blue")
    figure.text((234, top), "optimum π*, the formula")
    figure.mark((430, top - 4), "diamond", "fill-orange")
    figure.text((442, top), "trained π, by DPO from comparisons alone")


def recovered(results: Results) -> Figure:
    """The implicit reward against the true one: three lines of slope one."""
    figure = Figure(760, 420, "Implicit reward of the trained policy against the true reward")
    implicit = implicit_reward(results.trained, results.reference, BETA)
    shifts = -BETA * log_partition(results.reference, results.reward, BETA)
    axes = Axes(figure, Scale((-1.1, 1.1), (64, 600)), Scale((-1.5, 1), (360, 44)))
    axes.x_ticks((step / 2, signed(step / 2, 1)) for step in range(-2, 3))
    axes.y_ticks((step / 2, signed(step / 2, 1)) for step in range(-3, 3))
    axes.frame("What the policy has learned of the reward", "true reward r(x, y)", "implicit reward r̂(x, y)")
    marks: list[tuple[str, Shape]] = [("blue", "circle"), ("orange", "square"), ("green", "triangle")]
    for prompt, (colour, shape) in enumerate(marks):
        shift = shifts[prompt].item()
        axes.curve([(-1, shift - 1), (1, shift + 1)], f"{colour} dashed")
        for true, learned in pairs(results.reward[prompt], implicit[prompt]):
            axes.mark(true, learned, shape, f"fill-{colour}")
        figure.mark((622, 60 + 46 * prompt), shape, f"fill-{colour}")
        figure.text((634, 64 + 46 * prompt), f"prompt “{LETTERS[prompt]}”")
        figure.text((634, 81 + 46 * prompt), f"r̂ = r {'−' if shift < 0 else '+'} {abs(shift):.2f}", "soft small")
    return figure


def convergence(results: Results) -> Figure:
    """KL(π* ‖ π) over the steps, and over the number of comparisons."""
    figure = Figure(760, 340, "Divergence from the optimum: over training steps, and over the number of comparisons")
    left = Axes(figure, Scale((0, 160), (64, 364)), Scale((1e-8, 1), (280, 44), logarithmic=True))
    left.x_ticks((step, str(step)) for step in range(0, 161, 40))
    left.y_ticks((10.0**power, ten_to(power)) for power in range(-8, 1, 2))
    left.frame("Endlessly many comparisons", "training step", "KL(π* ‖ π), nats")
    distances = enumerate(map(results.distance, results.tables[:161]))
    left.curve(takewhile(lambda point: point[1] > 1e-8, distances), "blue")
    left.mark(0, results.distance(results.reference), "square", "fill-grey")
    left.note(0, results.distance(results.reference), "the reference", (12, 4))

    right = Axes(
        figure, Scale((600, 1.7e6), (444, 744), logarithmic=True), Scale((1e-5, 1), (280, 44), logarithmic=True)
    )
    right.x_ticks((10.0**power, ten_to(power)) for power in range(3, 7))
    right.y_ticks((10.0**power, ten_to(power)) for power in range(-5, 1))
    right.frame("A sample of them", "number of comparisons", "KL(π* ‖ π), nats")
    foretold = [
        (float(count), expected_divergence(results.optimum, results.reward, BETA, count)) for count in SAMPLE_SIZES
    ]
    right.curve(foretold, "ink dashed")
    right.note(*foretold[1], "foretold by statistics, ∝ 1/n", (14, -12))
    for count, found in results.sampled.items():
        for value in found:
            right.mark(count, value, "circle", "fill-orange")
    return figure


def pairs(x: torch.Tensor, y: torch.Tensor) -> Iterable[Point]:
    return zip(x.tolist(), y.tolist(), strict=True)


def signed(value: float, digits: int = 0) -> str:
    """With a true minus sign, and no sign on zero."""
    return f"{value + 0.0:+.{digits}f}".replace("-", "−") if round(value, digits) else f"{0:.{digits}f}"


def ten_to(power: int) -> str:
    return "1" if power == 0 else "10" + str(power).translate(SUPERSCRIPTS)
