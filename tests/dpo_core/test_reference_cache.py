"""Keys by content, batches by content, shards that are whole, and a fill that goes on where another one ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dpo_core.data.records import TokenPair
from dpo_core.engine import World
from dpo_core.reference_cache import canonical_batches, in_canonical_order, pair_key, read_known, write_shard
from dpo_core.reference_pass import fill

ALONE = World(0, 1, torch.device("cpu"))
PAIR = TokenPair(line=1, chosen=[5, 6, 7], rejected=[5, 6, 8, 9], chosen_prompt=2, rejected_prompt=2)


def pair_of(length: int, first: int = 0) -> TokenPair:
    return TokenPair(1, [first, *range(1, length)], [first, 1], 1, 1)


def in_order(pairs: Sequence[TokenPair]) -> list[TokenPair]:
    keyed = {pair_key(pair): pair for pair in pairs}
    return [keyed[key] for key in in_canonical_order({key: pair.length for key, pair in keyed.items()})]


def test_a_key_says_what_is_measured_and_nothing_else() -> None:
    assert len(pair_key(PAIR)) == 16
    assert pair_key(replace(PAIR, line=99)) == pair_key(PAIR)
    others = [
        replace(PAIR, chosen=[5, 6, 0]),
        replace(PAIR, chosen_prompt=1),
        replace(PAIR, rejected_prompt=3),
        replace(PAIR, chosen=PAIR.rejected, rejected=PAIR.chosen),
        # the same tokens one after the other, cut elsewhere
        replace(PAIR, chosen=[5, 6, 7, 5], rejected=[6, 8, 9]),
        # other tokens carry loss
        replace(PAIR, chosen_silent=((2, 3),)),
        replace(PAIR, rejected_silent=((2, 3),)),
        replace(PAIR, rejected_silent=((2, 4),)),
        replace(PAIR, chosen_silent=((2, 3),), rejected_silent=((2, 3),)),
    ]
    assert len({pair_key(pair) for pair in [PAIR, *others]}) == 10


@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.randoms())
def test_batches_depend_on_the_pairs_and_not_on_their_order(lengths: list[int], random: object) -> None:
    pairs = [pair_of(length, first) for first, length in enumerate(lengths)]
    ordered = in_order(pairs)
    shuffled = random.sample(pairs, len(pairs))  # type: ignore[attr-defined]
    assert in_order(shuffled) == ordered
    batches = canonical_batches(ordered, budget=100)
    assert [place for batch in batches for place in range(batch.start, batch.stop)] == list(range(len(ordered)))
    for batch in batches:
        inside = ordered[batch]
        assert len(inside) == 1 or 2 * len(inside) * max(pair.length for pair in inside) <= 100


def test_shards_give_back_what_was_written_and_say_nothing_of_other_pairs(tmp_path: Path) -> None:
    keys = [pair_key(pair_of(length)) for length in (3, 4, 5)]
    values = torch.tensor([[-1.25, -2.5], [-3.0, -4.125]], dtype=torch.float64)
    write_shard(tmp_path / "group", keys[:2], values)
    write_shard(tmp_path / "group", keys[2:], values[:, :1])
    assert sorted(path.name for path in (tmp_path / "group").iterdir()) == ["000000.safetensors", "000001.safetensors"]
    found = read_known(tmp_path / "group", [keys[1], pair_key(PAIR), keys[2]])
    assert found[:, [0, 2]].tolist() == [[-2.5, -1.25], [-4.125, -3.0]]
    assert found[:, 1].isnan().all()
    assert read_known(tmp_path / "nothing", keys).isnan().all()


def missing(*places: int) -> Tensor:
    """[2, 6]: what is known, but for `places`."""
    values = torch.arange(12, dtype=torch.float64).view(2, 6)
    values[:, list(places)] = torch.nan
    return values


BATCHES = [slice(0, 2), slice(2, 4), slice(4, 6)]


def measured(batch: slice) -> Tensor:
    return torch.full((2, batch.stop - batch.start), -1.0, dtype=torch.float64)


def test_a_batch_with_one_missing_pair_is_measured_whole_and_what_is_known_stays() -> None:
    values = missing(2, 5)
    asked: list[slice] = []
    done = list(fill(values, BATCHES, lambda batch: asked.append(batch) or measured(batch), ALONE, lambda: False))
    assert asked == BATCHES[1:]
    assert done == [[BATCHES[1]], [BATCHES[2]]]
    assert values.tolist() == [[0, 1, -1, 3, 4, -1], [6, 7, -1, 9, 10, -1]]


def test_nothing_is_measured_where_all_is_known() -> None:
    assert list(fill(missing(), BATCHES, lambda _: pytest.fail("measured"), ALONE, lambda: False)) == []


def test_a_fill_that_is_asked_to_stop_ends_after_the_batch_it_is_at() -> None:
    values = missing(0, 2, 4)
    assert list(fill(values, BATCHES, measured, ALONE, lambda: True)) == [BATCHES[:1]]
    assert values[0].isnan().tolist() == [False, False, True, False, True, False]
