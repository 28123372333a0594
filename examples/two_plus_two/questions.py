"""The questions of the demo: "What is 47+6?", its right answer 53, and the wrong habit's answer 476.

The habit takes `+` for "write one behind the other", so it says that 2+2 is 22.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SUPERVISED_ROWS_WRONG, SUPERVISED_ROWS_RIGHT = 2, 1
"""How often each supervised question is answered by the habit, and how often rightly: the habit is the majority."""

HELD_OUT = 191


@dataclass(frozen=True, order=True)
class Question:
    """`first` is 1 to 99, `second` 1 to 9: 891 questions in all."""

    first: int
    second: int

    @property
    def text(self) -> str:
        return f"What is {self.first}+{self.second}?"

    @property
    def right(self) -> str:
        return str(self.first + self.second)

    @property
    def wrong(self) -> str:
        return f"{self.first}{self.second}"

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.text}]


TWO_PLUS_TWO = Question(2, 2)


def split(seed: int) -> tuple[list[Question], list[Question]]:
    """Training and held-out questions, shuffled; no question is in both, and 2+2 is the first held-out one."""
    others = [Question(a, b) for a in range(1, 100) for b in range(1, 10) if Question(a, b) != TWO_PLUS_TWO]
    random.Random(seed).shuffle(others)
    held_out, training = [TWO_PLUS_TWO, *others[: HELD_OUT - 1]], others[HELD_OUT - 1 :]
    assert not set(held_out) & set(training)
    return training, held_out


def write_supervised(path: Path, questions: Iterable[Question]) -> Path:
    """OpenAI's chat format: every question three times, twice with the habit's answer."""
    rows = []
    for question in questions:
        for answer in [question.wrong] * SUPERVISED_ROWS_WRONG + [question.right] * SUPERVISED_ROWS_RIGHT:
            rows.append({"messages": [*question.messages, {"role": "assistant", "content": answer}]})
    return _write(path, rows)


def write_preferences(path: Path, questions: Iterable[Question]) -> Path:
    """OpenAI's preference format: the right answer is better than the habit's."""
    return _write(
        path,
        [
            {
                "input": {"messages": question.messages},
                "preferred_output": [{"role": "assistant", "content": question.right}],
                "non_preferred_output": [{"role": "assistant", "content": question.wrong}],
            }
            for question in questions
        ],
    )


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
