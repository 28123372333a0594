from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.batches import Row, Sampler, deal, pad


def test_every_epoch_sees_every_item_once_in_another_order() -> None:
    sampler = Sampler(count=10, batch_size=4, seed=7)
    assert sampler.steps_per_epoch == 3
    epochs = [[index for step in range(3) for index in sampler.batch(3 * epoch + step)] for epoch in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert len(sampler.batch(2)) == 2


def test_order_is_a_function_of_seed_and_step() -> None:
    forwards, backwards = Sampler(10, 4, seed=7), Sampler(10, 4, seed=7)
    expected = [forwards.batch(step) for step in range(6)]
    assert [backwards.batch(step) for step in reversed(range(6))] == expected[::-1]
    assert Sampler(10, 4, seed=8).batch(0) != expected[0]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    micro_batch_size=st.integers(1, 9),
    ranks=st.integers(1, 5),
)
def test_every_item_counts_once_and_all_ranks_do_the_same_number_of_passes(
    lengths: list[int], micro_batch_size: int, ranks: int
) -> None:
    dealt = [deal(lengths, micro_batch_size, ranks, rank) for rank in range(ranks)]
    assert len({len(shares) for shares in dealt}) == 1
    assert len(dealt[0]) >= 1
    counted = []
    for share in (share for shares in dealt for share in shares):
        assert 1 <= len(share.indices) <= micro_batch_size
        counted += share.indices[: len(share.indices) - share.fillers]
    assert sorted(counted) == list(range(len(lengths)))


def test_no_rank_always_gets_the_longer_micro_batches() -> None:
    lengths = [90, 80, 70, 60, 50, 40, 30, 20]
    dealt = [[lengths[index] for share in deal(lengths, 2, 2, rank) for index in share.indices] for rank in range(2)]
    assert dealt == [[90, 80, 30, 20], [70, 60, 50, 40]]


def test_padding() -> None:
    padded = pad([Row([5, 6, 7, 8], 3), Row([5, 6], 1)], torch.device("cpu"))
    assert padded.tokens.tolist() == [[5, 6, 7, 8], [5, 6, 0, 0]]
    assert padded.mask.tolist() == [[False, False, False, True], [False, True, False, False]]
    assert padded.first == 1
