"""Who is held out, and what the two sides share: on tables without tokens, whose rows are known by prompts alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpo_core.data.facts import DataFacts, FileFacts
from dpo_core.data.fingerprints import fingerprint
from dpo_core.data.records import Example, TokenExample
from dpo_core.data.rendering import arrays
from dpo_core.data.splits import leaks, split
from dpo_core.data.token_table import TableWriter, TokenTable


def table(path: Path, prompts: str) -> TokenTable:
    rows = [Example(line, prompt, "a", row=line) for line, prompt in enumerate(prompts, start=1)]
    with TableWriter(path) as writer:
        writer.add(*arrays([(TokenExample(row.line, [1, 2], 1), fingerprint(row)) for row in rows]))
        return writer.finish(DataFacts([FileFacts()]))


def sides(path: Path, prompts: str, fraction: float, seed: int) -> tuple[str, str]:
    """The prompts that are trained on, and those held out."""
    kept, held_out = split(table(path / "t", prompts), fraction, seed)
    return "".join(prompts[place] for place in kept), "".join(prompts[place] for place in held_out)


def test_a_prompt_is_on_one_side_only(tmp_path: Path) -> None:
    train, validation = sides(tmp_path, "abcdefghij" * 10, 0.3, seed=1)
    assert (len(train), len(validation)) == (70, 30)
    assert not set(train) & set(validation)


def test_the_split_depends_on_seed_and_prompts_alone(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    held_out = set(sides(tmp_path, letters, 0.25, seed=3)[1])
    assert held_out == set(sides(tmp_path, letters[::-1], 0.25, seed=3)[1])
    assert held_out != set(sides(tmp_path, letters, 0.25, seed=4)[1])
    assert len(held_out) == round(0.25 * 26)


def test_the_choice_stays_what_it_was(tmp_path: Path) -> None:
    """A job that goes on after an upgrade holds out the same rows as before it."""
    assert sides(tmp_path, "abcdefghijklmnopqrstuvwxyz", 0.25, seed=3)[1] == CHOSEN


CHOSEN = "abgrsu"


@pytest.mark.parametrize(
    ("prompts", "fraction", "counts"),
    [("aaaa", 0.5, (4, 0)), ("ab", 0.99, (1, 1)), ("ab", 0.0, (2, 0)), ("", 0.5, (0, 0))],
)
def test_something_is_always_left_to_train_on(
    tmp_path: Path, prompts: str, fraction: float, counts: tuple[int, int]
) -> None:
    train, validation = sides(tmp_path, prompts, fraction, seed=0)
    assert (len(train), len(validation)) == counts


def test_prompts_of_the_validation_file_that_are_trained_on_are_found(tmp_path: Path) -> None:
    training, validation = table(tmp_path / "t", "abcabcxyz"), table(tmp_path / "v", "qbrzb")
    (found,) = leaks(training, validation)
    assert (found.code, found.count, found.lines) == ("prompt_in_training", 3, [2, 4, 5])
    assert leaks(training, table(tmp_path / "w", "qr")) == []


def test_items_come_back_as_they_went_in(tmp_path: Path) -> None:
    items = table(tmp_path / "t", "abc")
    assert items[-1] == TokenExample(3, [1, 2], 1)
    assert list(items[1:]) == [items[1], items[2]]
    assert np.array_equal(items.tokens, [1, 2] * 3)


def test_nothing_is_held_out_of_a_fraction_of_nothing(tmp_path: Path) -> None:
    assert sides(tmp_path, "abca", 0, seed=1) == ("abca", "")
