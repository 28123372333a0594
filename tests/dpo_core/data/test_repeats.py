from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpo_core.data import repeats
from dpo_core.data.fingerprints import FINGERPRINT, fingerprint, prompt_key
from dpo_core.data.problems import LINES_KEPT
from dpo_core.data.records import Example, JsonText, Message, Pair
from dpo_core.data.repeats import Prompts, Repeats


def array(rows: Iterable[Pair | Example], file: int = 0) -> np.ndarray:
    """Each row stands in a line of its own."""
    return np.array([fingerprint(replace(row, row=row.line), file) for row in rows], FINGERPRINT)


def found(*files: list[Pair], names: tuple[str, ...] = ("",)) -> list[dict[str, list[int]]]:
    look = Repeats()
    for place, rows in enumerate(files):
        look.add(array(rows, place))
    return [{finding.code: finding.lines for finding in findings} for findings in look.findings(names)]


def test_what_a_row_says_beside_its_text_counts() -> None:
    plain = Pair(1, (Message("user", "q"),), (Message("assistant", "a"),), (Message("assistant", "b"),))
    thinking = Pair(2, plain.prompt, (Message("assistant", "a", reasoning="hm"),), plain.rejected)
    tools = Pair(3, plain.prompt, plain.chosen, plain.rejected, tools=JsonText("[]"))
    assert found([plain, thinking, tools]) == [{}]
    assert found([plain, thinking, tools, Pair(4, "q", "a", "b")]) == [{"duplicate_row": [4]}]


def test_pairs_of_one_row_do_not_repeat_it() -> None:
    assert found([Pair(1, "q", "a", "b"), Pair(1, "q", "a", "b"), Pair(2, "q", "a", "b")]) == [{"duplicate_row": [2]}]


def test_a_row_of_another_file_is_named_with_its_file() -> None:
    look = Repeats()
    look.add(array([Pair(7, "q", "a", "b")]))
    look.add(array([Pair(3, "q", "b", "a")], 1))
    first, ((finding),) = look.findings(("file-a", "file-b"))
    assert (first, finding.code, finding.lines) == ([], "opposite_labels", [3])
    assert finding.message.startswith("Line 3 prefers the answer that line 7 of file-a rejects")


@pytest.mark.parametrize("rows_in_memory", [7, 10**6])
def test_partitions_on_disk_find_the_same(monkeypatch: pytest.MonkeyPatch, rows_in_memory: int) -> None:
    monkeypatch.setattr(repeats, "ROWS_IN_MEMORY", rows_in_memory)
    rows = [Pair(line, f"q{line % 300}", "a", "b") for line in range(1, 601)]
    look, prompts = Repeats(), Prompts()
    for start in range(0, len(rows), 5):
        look.add(array(rows[start : start + 5]))
        prompts.add(array(rows[start : start + 5]))
    ((duplicate,),) = look.findings()
    assert (duplicate.count, duplicate.lines) == (300, list(range(301, 301 + LINES_KEPT)))
    assert duplicate.message.startswith("Line 301 repeats an earlier row (line 1)")
    different, (prompt,) = prompts.take()
    assert different == 300
    assert (prompt.code, prompt.count, prompt.lines[0]) == ("repeated_prompt", 300, 301)


def test_prompts_are_compared_without_case_and_spacing() -> None:
    assert prompt_key("What  is\n2+2?") == prompt_key(" what is 2+2? ")
    assert prompt_key("a") == prompt_key((Message("user", "A"),))
    assert prompt_key("a") != prompt_key((Message("system", "a"),))
    assert prompt_key("ab") != prompt_key("a b")


def test_a_file_without_rows_repeats_nothing() -> None:
    assert Repeats().findings() == [[]]
    assert Prompts().take() == (0, [])


def test_what_lies_on_disk_has_no_name_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed can't tidy up."""
    monkeypatch.setattr(repeats, "ROWS_IN_MEMORY", 7)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    look = Repeats()
    look.add(array(Pair(line, "q", "a", "b") for line in range(1, 10)))
    assert list(tmp_path.iterdir()) == []
    ((duplicate,),) = look.findings()
    assert duplicate.count == 8
