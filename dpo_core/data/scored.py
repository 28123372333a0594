"""N answers to one prompt, each with a score, to pairs: the best against the worst, or all that differ."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import combinations

from dpo_core.data.answers import answer_of, refuse_equal
from dpo_core.data.fields import BadRow, Row, first_of, kind_of, require, shown
from dpo_core.data.preference import pair_of
from dpo_core.data.prompts import prompt_of
from dpo_core.data.records import Pair, RowProblem, Text
from dpo_core.spec import ScoredAnswers

ANSWERS = ("answers", "responses", "completions", "candidates")
SCORES = ("scores", "ratings", "rewards")
TEXT_OF_ANSWER = ("content", "response", "text", "answer", "completion", "messages")
SCORE_OF_ANSWER = ("score", "overall_score", "rating", "reward")

MAX_ANSWERS = 64
"""More to one prompt are refused: all pairs of 64 are 2,016 already."""


def is_scored(row: Row) -> bool:
    name = first_of(row, ANSWERS)
    return name is not None and isinstance(row[name], list)


def scored_pairs(row: Row, line: int, which: ScoredAnswers) -> list[Pair | RowProblem]:
    """The pairs of a row, at least one; the answer with the higher score is the chosen one.

    Two answers that are equal, though their scores differ, make no pair but a problem, and the row's others stand.

    Raises:
        BadRow: answers without score, all scores alike, equal answers with different scores …
    """
    field = first_of(row, ANSWERS) or "answers"
    prompt, _ = prompt_of(row)
    scored = _scored(row, field)
    # Sorted is stable: of equal scores, the earlier answer is the better and the later the worse one.
    order = sorted(range(len(scored)), key=lambda index: -scored[index][1])
    if scored[order[0]][1] == scored[order[-1]][1]:
        message = f"All answers in `{field}` have the same score, so there is nothing to prefer. Remove the row."
        raise BadRow("equal_scores", field, message)
    couples = [(order[0], order[-1])] if which == "best_worst" else combinations(order, 2)
    pairs = list[Pair | RowProblem]()
    for better, worse in couples:
        if scored[better][1] > scored[worse][1]:
            chosen, rejected = scored[better][0], scored[worse][0]
            try:
                refuse_equal(chosen, rejected, f"{field}[{better}]", f"{field}[{worse}]")
            except BadRow as bad:
                pairs.append(RowProblem(line, bad.code, bad.field, bad.message))
            else:
                pairs.append(pair_of(row, line, prompt, chosen, rejected))
    return pairs


def _scored(row: Row, field: str) -> list[tuple[Text, float]]:
    """The answers with their scores, in the row's order."""
    answers = require(row, field)
    if not isinstance(answers, list) or len(answers) < 2:
        raise BadRow("too_few_answers", field, f"`{field}` must be a list of at least two answers. Remove the row.")
    if len(answers) > MAX_ANSWERS:
        message = (
            f"`{field}` has {len(answers):,} answers; at most {MAX_ANSWERS} are taken. Keep the best and the worst."
        )
        raise BadRow("too_many_answers", field, message)
    scores = first_of(row, SCORES)
    if scores is None:
        return [_own_score(answer, f"{field}[{index}]") for index, answer in enumerate(answers)]
    given = row[scores]
    if not isinstance(given, list) or len(given) != len(answers):
        count = len(given) if isinstance(given, list) else kind_of(given)
        message = f"`{scores}` must have a score for each of the {len(answers)} answers in `{field}`, and has {count}."
        raise BadRow("bad_score", scores, message)
    return [
        (_answer(answer, f"{field}[{index}]"), _number(score, f"{scores}[{index}]"))
        for index, (answer, score) in enumerate(zip(answers, given, strict=True))
    ]


def _own_score(answer: object, field: str) -> tuple[Text, float]:
    if not isinstance(answer, dict):
        message = f"`{field}` must be an object with a text and a score, not {kind_of(answer)}."
        raise BadRow("wrong_type", field, message)
    name = first_of(answer, SCORE_OF_ANSWER)
    if name is None:
        message = f"`{field}` has no `score`. Give every answer one, or a list `scores` beside `answers`."
        raise BadRow("bad_score", field, message)
    return _answer(answer, field), _number(answer[name], f"{field}.{name}")


def _answer(answer: object, field: str) -> Text:
    """Text, a message, a message list, or an object that holds one of them."""
    if not isinstance(answer, dict) or "role" in answer or "from" in answer:
        return answer_of(answer, field)
    name = first_of(answer, TEXT_OF_ANSWER) or "content"
    return answer_of(require(answer, name, f"{field}."), f"{field}.{name}")


def _number(score: object, field: str) -> float:
    """A finite number, or the text of one."""
    number = math.nan
    if isinstance(score, int | float | str) and not isinstance(score, bool):
        with suppress(ValueError, OverflowError):
            number = float(score)
    if not math.isfinite(number):
        raise BadRow("bad_score", field, f"`{field}` is {shown(score)}, which is no number. Correct or remove the row.")
    return number
