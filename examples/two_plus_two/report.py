"""The illustrated table: what DPO did to the probabilities of two answers."""

from __future__ import annotations

import math

from measure import Measured
from questions import Question
from rich.console import Console
from rich.table import Table

SHOWN = 3


def show(console: Console, questions: list[Question], before: Measured, after: Measured, beta: float) -> None:
    """Prints the first held-out questions. `before` is the policy at the start, which is also the reference."""
    table = Table(title="Held-out questions, which no training file contains", title_justify="left", pad_edge=False)
    table.add_column("question and answer")
    for column in ("log π ref", "log π start", "log π end", "reward start", "reward end"):
        table.add_column(column, justify="right")
    for index, question in enumerate(questions[:SHOWN]):
        _add(table, question, index, before, after, beta)
    console.print(table, highlight=False)
    console.print(
        "  log π: log-probability of the whole answer.  reward r = β (log π - log π ref), "
        f"here with β = {beta:g}.\n  P(winner beats loser) = σ(r winner - r loser): Bradley and Terry's formula. "
        "At the start the policy\n  is the reference, so every reward is 0 and every P is 0.5.\n",
        highlight=False,
    )


def _add(table: Table, question: Question, index: int, before: Measured, after: Measured, beta: float) -> None:
    rewards = []
    for role, answer, start, end in (
        ("winner", question.right, before.right[index], after.right[index]),
        ("loser", question.wrong, before.wrong[index], after.wrong[index]),
    ):
        rewards.append(beta * (end - start))
        label = f"{question.text:<14} {role:<6} {answer:>3}"
        table.add_row(label, f"{start:.3f}", f"{start:.3f}", f"{end:.3f}", "0.000", f"{rewards[-1]:+.3f}")
    probability = 1 / (1 + math.exp(rewards[1] - rewards[0]))
    answers = f"  it answered {before.answers[index]}, now {after.answers[index]}"
    table.add_row(answers, "", "P = 0.500", f"P = {probability:.3f}", "", "", end_section=True)
