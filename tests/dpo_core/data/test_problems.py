from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from dpo_core.data.problems import LINES_KEPT, TITLES, Tally, lines_in_words, share_for
from dpo_core.data.records import FileProblemCode, Pair, ProblemCode


def test_every_problem_has_its_words() -> None:
    assert set(get_args(ProblemCode)) == set(TITLES)


def test_a_tally_counts_rows_once_and_keeps_the_first_lines() -> None:
    tally = Tally()
    for number in range(1, 1001):
        tally.add("a", Pair(number, "q", "a", "b", row=number), f"line {number}")
        tally.add("a", Pair(number, "q", "a", "b", row=number), "the same row again")
    tally.add("b", Pair(1000, "q", "a", "b", row=1000), "other")
    first, other = tally.findings()
    assert (first.count, first.lines, first.message) == (1000, list(range(1, LINES_KEPT + 1)), "line 1")
    assert (other.count, other.lines) == (1, [1000])
    assert tally.count == 1001


@pytest.mark.parametrize(
    ("lines", "count", "words"),
    [
        ([7], 1, "line 7"),
        ([3, 9], 2, "lines 3, 9"),
        ([1, 2, 3, 5, 8, 9], 6, "lines 1-3, 5, 8-9"),
        ([1, 2], 1234, "lines 1-2 and 1,232 more"),
        ([7, 7, 7], 3, "line 7"),
        ([7, 7, 8, 10], 5, "lines 7-8, 10 and 1 more"),
    ],
)
def test_lines_in_words(lines: list[int], count: int, words: str) -> None:
    assert lines_in_words(lines, count) == words


@pytest.mark.parametrize(
    ("count", "rows", "share"), [(9, 2312, 0.0039), (1, 3, 0.34), (1, 10**7, 1e-7), (999, 1000, 1.0), (1, 2, 0.5)]
)
def test_the_share_that_lets_so_many_pass(count: int, rows: int, share: float) -> None:
    assert share_for(count, rows) == share
    assert count <= share * rows + 1e-9


def test_every_code_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    documented = re.findall(r"^\| `([a-z0-9_]+)` \| ([^|]+) \|$", page, re.MULTILINE)
    assert {code for code, _ in documented} >= {*get_args(ProblemCode), *get_args(FileProblemCode)}
    assert set(TITLES.items()) <= set(documented)


def test_many_lines_are_counted_instead_of_written_out() -> None:
    assert lines_in_words(range(1, 200, 2), 300) == "lines 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23 and 288 more"
    assert lines_in_words(range(1, 101), 300) == "lines 1-100 and 200 more"
