"""What was found in rows, counted and named by line: problems, repeats, oddities. Memory stays bounded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dpo_core.data.records import Example, Pair, RowProblem

LINES_KEPT = 100
"""How many line numbers are kept for each code; further rows are counted."""

TITLES: dict[str, str] = {
    "bad_answer_role": "the answer isn't the assistant's",
    "bad_prompt_end": "the prompt ends with an assistant turn",
    "bad_role": "a message has an unknown role",
    "bad_score": "an answer without a usable score",
    "bad_text": "half of a surrogate pair, or a NUL character, in the text",
    "bad_tool_call": "a tool call that can't be read",
    "bad_transcript": "the transcript doesn't begin with a turn",
    "cells_missing": "cells too few or too many",
    "duplicate_field": "a field that is there twice",
    "empty_answer": "empty answer",
    "empty_prompt": "empty prompt",
    "equal_answers": "the two answers are equal",
    "equal_scores": "all answers have the same score",
    "equal_tokens": "the two answers become the same tokens",
    "line_too_long": "the row is too long",
    "many_turns": "an answer in which the assistant speaks twice in a row",
    "missing_field": "a field is missing",
    "not_an_object": "the row isn't a JSON object",
    "not_csv": "a row that CSV can't have",
    "not_json": "the row isn't valid JSON",
    "not_rendered": "the chat template can't render the row",
    "not_utf8": "the row isn't UTF-8 text",
    "prompt_in_answer": "the answer repeats the conversation",
    "prompts_differ": "the two conversations differ before the answer",
    "too_few_answers": "fewer than two answers to compare",
    "too_many_answers": "more answers than are taken",
    "too_many_turns": "more turns than are taken",
    "two_systems": "two system turns",
    "unknown_format": "the fields belong to no known format",
    "unpaired": "one answer with a label instead of a pair",
    "unsupported_content": "content that isn't text",
    "unsupported_field": "a field that isn't supported",
    "wrong_method": "a row for another method",
    "wrong_type": "a field of the wrong type",
    "zero_weight": "an answer with weight 0",
}
"""The words for every `dpo_core.data.records.ProblemCode`."""


@dataclass(slots=True)
class Finding:
    """Rows that have something in common; `message` is about the first of them, or about all."""

    code: str
    message: str
    count: int = 0
    lines: list[int] = field(default_factory=list)
    """Of the first LINES_KEPT rows, in the order of the file; several rows may stand in one line."""

    last: int = -1
    """The row that was added last."""


class Tally:
    """Findings by code. Rows come in the order of the file; one that is added again at once counts once."""

    def __init__(self) -> None:
        self._findings: dict[str, Finding] = {}

    def add(self, code: str, at: Pair | Example | RowProblem, message: str) -> None:
        finding = self._findings.setdefault(code, Finding(code, message))
        if finding.last == at.row:
            return
        finding.last = at.row
        finding.count += 1
        if len(finding.lines) < LINES_KEPT:
            finding.lines.append(at.line)

    def merge(self, others: Iterable[Finding]) -> None:
        """Takes in what was found in other rows, whose lines may lie anywhere among these."""
        for other in others:
            finding = self._findings.setdefault(other.code, Finding(other.code, other.message))
            if finding.lines and other.lines and other.lines[0] < finding.lines[0]:
                finding.message = other.message
            finding.count += other.count
            finding.lines = sorted([*finding.lines, *other.lines])[:LINES_KEPT]

    @property
    def count(self) -> int:
        return sum(finding.count for finding in self._findings.values())

    def findings(self) -> list[Finding]:
        """By code in the order of their first rows."""
        return sorted(self._findings.values(), key=lambda finding: finding.lines[0])


def rows_in_words(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


SPANS_SHOWN = 12


def lines_in_words(lines: Sequence[int], count: int) -> str:
    """Such as `lines 3, 5-9 and 120 more`, of which SPANS_SHOWN are written out; `count`: the rows there are in all."""
    shown = _spans(lines)[:SPANS_SHOWN]
    spans = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in shown)
    more = count - sum(line <= shown[-1][1] for line in lines)
    words = "line" if len(set(lines)) == 1 else "lines"
    return f"{words} {spans}" + (f" and {more:,} more" if more else "")


def _spans(lines: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of equal and consecutive numbers, as first and last."""
    spans: list[tuple[int, int]] = []
    for line in lines:
        if spans and line <= spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], line)
        else:
            spans.append((line, line))
    return spans


def problem_in_words(code: str, message: str, count: int, lines: Sequence[int]) -> str:
    """How many rows are bad in the same way, what is wrong, where, and the way out of the first of them."""
    first = "" if count == 1 else f"Line {lines[0]}: "
    return f"{rows_in_words(count)}: {TITLES[code]} ({lines_in_words(lines, count)}). {first}{message}"


def share_for(count: int, rows: int) -> float:
    """A share with two significant digits of which `count` of `rows` is not too many."""
    share = count / rows
    digits = 1 - math.floor(math.log10(share))
    return min(math.ceil(share * 10.0**digits) / 10.0**digits, 1.0)
