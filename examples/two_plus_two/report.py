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
    for column in ("log π ref", "log π start\n(= ref here)", "log π end", "reward start", "reward end"):
        table.add_column(column, justify="right")
    for index, question in enumerate(questions[:SHOWN]):
        changes = [(before.right[index], after.right[index]), (before.wrong[index], after.wrong[index])]
        _add(table, question, changes, (before.answers[index], after.answers[index]), beta)
    console.print(table, highlight=False)
    console.print(
        "  log π: log-probability of the whole answer.  ref: the reference, which is the model that DPO starts from.\n"
        f"  reward r = β (log π - log π ref), here with β = {beta:g}.\n"
        "  P(winner beats loser) = σ(r winner - r loser): Bradley and Terry's formula.\n"
        "  At the start every reward is 0, and so every P is 0.5.\n",
        highlight=False,
    )


def _add(
    table: Table, question: Question, changes: list[tuple[float, float]], answers: tuple[str, str], beta: float
) -> None:
    """Two rows and a summary. `changes`: log-probabilities at start and end, of the winner and of the loser."""
    rewards = [beta * (end - start) for start, end in changes]
    labels = [f"winner {question.right:>3}", f"loser  {question.wrong:>3}"]
    for label, (start, end), reward in zip(labels, changes, rewards, strict=True):
        start_cell = f"{start:.3f}"
        table.add_row(f"{question.text:<14} {label}", start_cell, start_cell, f"{end:.3f}", "0.000", f"{reward:+.3f}")
    probability = 1 / (1 + math.exp(rewards[1] - rewards[0]))
    said = f"  it answered {answers[0]}, now {answers[1]}"
    table.add_row(said, "", "P = 0.500", f"P = {probability:.3f}", "", "", end_section=True)
