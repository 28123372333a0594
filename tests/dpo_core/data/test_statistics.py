from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from dpo_core.data.records import Example, JsonText, Message, Pair
from dpo_core.data.statistics import EXACT_BELOW, Gathered, Histogram, wilson_interval
from dpo_core.prepare_report import Lengths


def histogram(values: list[int]) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


def test_below_the_bound_percentiles_are_exact() -> None:
    values = [Random(1).randrange(EXACT_BELOW) for _ in range(999)]
    assert histogram(values).lengths() == Lengths.of(Counter(values))
    assert histogram(values).count_above(30_000) == sum(value > 30_000 for value in values)
    assert histogram([]).lengths() == Lengths.of([])


def test_above_it_they_are_within_a_hundredth_and_memory_is_bounded() -> None:
    values = [Random(2).randrange(EXACT_BELOW, 8_000_000) for _ in range(20_000)]
    found, true = histogram(values).lengths(), Lengths.of(Counter(values))
    for name in ("p50", "p90", "p99"):
        assert 0.99 * getattr(true, name) <= getattr(found, name) <= getattr(true, name)
    assert (found.mean, found.longest) == (pytest.approx(true.mean), true.longest)
    assert len(histogram(values)._counts) < 1000


def test_parts_add_up_to_the_whole() -> None:
    values = [Random(3).randrange(200_000) for _ in range(3000)]
    whole = histogram(values[:1000])
    whole.merge(histogram(values[1000:]))
    assert whole.lengths() == histogram(values).lengths()


def test_wilsons_interval_by_hand() -> None:
    # z = 1.96, n = 100, p = 0.6: (0.6 + 0.019207) / 1.038415 -+ 1.887463 * sqrt(0.0024 + 0.000096) = 0.5020, 0.6906
    assert wilson_interval(60, 100) == (pytest.approx(0.5020, abs=1e-4), pytest.approx(0.6906, abs=1e-4))
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_rows_of_every_kind_are_counted() -> None:
    gathered = Gathered()
    user, answer = Message("user", "1+1?"), (Message("assistant", "two"),)
    system = Message("system", "Be brief.")
    gathered.add(Pair(1, "12345", "123", "12"))
    gathered.add(Pair(2, "12345", "12", "123"))
    gathered.add(Pair(3, "12345", "123", "abc"))
    gathered.add(Pair(4, (system, user), answer, (Message("assistant", "three", reasoning="Hm."),)))
    gathered.add(Example(5, (user,), answer, tools=JsonText("[]")))
    found = gathered.statistics(prompts=2)
    assert (found.system_turns, found.tools, found.reasoning, found.prompts) == (1, 1, 1, 2)
    assert (found.turns.p50, found.turns.longest) == (2, 3)
    assert found.prompt_characters.longest == 13
    assert found.completion_characters is not None and found.completion_characters.mean == 3
    assert found.chosen_characters is not None and found.chosen_characters.mean == 2.75
    bias = found.length_bias
    assert bias is not None
    assert (bias.share, bias.pairs, bias.equal) == (pytest.approx(1 / 3), 3, 1)
    assert bias.low < 1 / 3 < bias.high
