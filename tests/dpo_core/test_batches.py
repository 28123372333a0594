from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dpo_core.batches import Cost, Sampler, deal
from dpo_core.spec import Way


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


def costs(lengths: list[int]) -> list[Cost]:
    return [Cost(tokens=length, rows=2, responses=length // 2) for length in lengths]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    way=st.sampled_from(["shared", "separate", "padded"]),
    budget=st.integers(1, 60),
    ranks=st.integers(1, 5),
)
def test_every_item_counts_once_and_all_ranks_do_the_same_work(
    lengths: list[int], way: Way, budget: int, ranks: int
) -> None:
    dealt = deal(costs(lengths), way, budget, 7, ranks)
    assert len(dealt) == ranks
    assert len({len(shares) for shares in dealt}) == 1
    assert len(dealt[0]) >= 1
    for together in zip(*dealt, strict=True):
        assert len({share.chunks for share in together}) == 1
        for share in together:
            assert sum(lengths[index] // 2 for index in share.indices) <= 7 * share.chunks
    every = [share for shares in dealt for share in shares]
    assert sorted(index for share in every if share.counts for index in share.indices) == list(range(len(lengths)))
    for share in every:
        rows = 2 * len(share.indices)
        longest = max(lengths[index] for index in share.indices)
        size = rows * longest if way == "padded" else sum(lengths[index] for index in share.indices)
        assert size <= budget or len(share.indices) == 1


def test_packed_micro_batches_are_few_and_even() -> None:
    lengths = [90, 80, 70, 60, 50, 40, 30, 20]
    dealt = deal(costs(lengths), "shared", 230, 1000, 2)
    sizes = [[sum(lengths[index] for index in share.indices) for share in shares] for shares in dealt]
    assert sizes == [[220], [220]]


def test_padded_micro_batches_hold_neighbours_in_length() -> None:
    lengths = [90, 20, 80, 30, 70, 40, 60, 50]
    dealt = deal(costs(lengths), "padded", 360, 1000, 2)
    held = [[[lengths[index] for index in share.indices] for share in shares] for shares in dealt]
    assert held == [[[90, 80], [50, 40, 30]], [[70, 60], [20]]]


def test_an_idle_rank_repeats_the_shortest_item_at_zero_weight() -> None:
    dealt = deal(costs([8, 4]), "shared", 100, 1000, 3)
    assert [[(share.indices, share.counts) for share in shares] for shares in dealt] == [
        [([0], True)],
        [([1], True)],
        [([1], False)],
    ]
