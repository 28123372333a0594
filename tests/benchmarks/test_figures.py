"""The benchmarks' own arithmetic, by hand."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import flops
from benchmarks.contest import Entry, tokens_for
from benchmarks.gradients import compare
from benchmarks.lengths import CHOSEN, PROMPT, PairLengths, between, like_hh_rlhf, with_ratio
from benchmarks.outcome import Outcome, fastest_seconds, median_seconds
from benchmarks.shape import Shape

SHAPE = Shape(hidden=4, layers=1, heads=2, key_value_heads=1, intermediate=8, vocabulary=10)
PAIR = PairLengths(prompt=3, chosen=2, rejected=4)


def test_weights() -> None:
    # q and o 4×4 each, k and v 4×2 each, gate, up and down 4×8 each
    assert SHAPE.backbone_weights == 2 * 16 + 2 * 8 + 3 * 32
    # embedding and head 10×4 each, three norms of 4
    assert SHAPE.weights == 144 + 80 + 12


def test_operations_of_a_shared_pair() -> None:
    # 3 prompt tokens, 1 + 3 answer tokens that are read: 7. Scores: prompt 6; chosen 1×3 + 1; rejected 3×3 + 6.
    linear = 2 * 144 * 7
    attention = 4 * 4 * (6 + 4 + 15)
    head = 2 * 4 * 10 * 6
    assert flops.shared(SHAPE, [PAIR, PAIR]) == 2 * 3 * (linear + attention + head)
    assert flops.shared(SHAPE, [PAIR], lora=True) == 2 * (linear + head) + 3 * attention


def test_operations_of_a_separate_pair() -> None:
    # sequences of 3 + 1 and 3 + 3 tokens that are read
    linear = 2 * 144 * (4 + 6)
    attention = 4 * 4 * (10 + 21)
    head = 2 * 4 * 10 * 6
    assert flops.separate(SHAPE, [PAIR]) == 3 * (linear + attention + head)


def test_percentiles_are_interpolated() -> None:
    assert between((0, 10, 30), 0.0) == 0
    assert between((0, 10, 30), 0.25) == 5
    assert between((0, 10, 30), 0.75) == 20
    assert between((0, 10, 30), 1.0) == 30


def test_drawn_lengths_have_the_tables_medians() -> None:
    pairs = like_hh_rlhf(4001, seed=0)
    assert median(pair.prompt for pair in pairs) == pytest.approx(PROMPT[10], rel=0.05)
    assert median(pair.chosen for pair in pairs) == pytest.approx(CHOSEN[10], rel=0.05)
    assert like_hh_rlhf(5, seed=0) == pairs[:5]


def test_pairs_of_a_given_ratio() -> None:
    for ratio in (0.4, 11.0):
        pairs = with_ratio(8, ratio, answers=100, seed=1)
        prompts, answers = sum(pair.prompt for pair in pairs), sum(pair.chosen + pair.rejected for pair in pairs)
        assert prompts / answers == pytest.approx(ratio, rel=0.02)


def test_each_step_counts_with_its_fastest_round_and_the_medians_stand_beside_it() -> None:
    rounds = ([1.0, 9.0], [2.0, 3.0], [8.0, 4.0])
    assert fastest_seconds(rounds) == 1.0 + 3.0
    assert median_seconds(rounds) == 2.0 + 4.0


def test_the_reference_is_counted_by_pair() -> None:
    step = [PAIR, PAIR]
    entry = Entry("ours", [Outcome([2.0, 3.0], [], memory=7, reference_seconds=1.5)], [step, step, step])
    assert entry.pairs_per_second == 4 / 5
    # two of three steps are timed, so two thirds of the reference pass are theirs
    assert entry.seconds_with_reference == 6.0


def test_a_budget_holds_the_longest_pairs_of_every_step() -> None:
    short, long = PairLengths(1, 2, 2), PairLengths(10, 2, 2)
    assert tokens_for([[short, long, short], [long, long, short]], 1) == 14
    assert tokens_for([[short, long, short], [long, long, short]], 2) == 28


def test_gradients_apart(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0])}, tmp_path / "one")
    save_file({"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([0.0])}, tmp_path / "other")
    difference = compare(tmp_path / "one", tmp_path / "other")
    assert (difference.largest, difference.of, difference.relative) == (0.5, 4.5, 0.1)
    save_file({"c": torch.zeros(1)}, tmp_path / "third")
    with pytest.raises(ValueError, match="different tensors"):
        compare(tmp_path / "one", tmp_path / "third")
