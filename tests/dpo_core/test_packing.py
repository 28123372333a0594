from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.data.records import TokenExample, TokenItem, TokenPair
from dpo_core.packing import Block, Layout, arrange, input_tokens, pack, pad

PAIR = TokenPair(1, chosen=[1, 2, 3, 4, 5, 9], rejected=[1, 2, 3, 7, 9], chosen_prompt=2, rejected_prompt=2)
"""A prompt of two tokens; the answers [3 4 5 9] and [3 7 9] both begin with 3."""


def test_a_pair_is_one_block_in_which_every_shared_token_stands_once() -> None:
    batch = pack([PAIR], share=True)
    #                              |- trunk -|  chosen  rejected: their last token, 9, predicts nothing
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5, 7]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert batch.layout is not None and batch.layout.blocks == (Block(3, 2, 1),)
    # 3 is predicted once, for both; 4 and 7 are both predicted by the trunk's last token
    assert batch.targets.tolist() == [3, 4, 5, 9, 7, 9]
    assert batch.predictors.tolist() == [1, 2, 3, 4, 2, 5]
    assert batch.entries.tolist() == [0, 1, 2, 3, 0, 4, 5]
    assert batch.lengths.tolist() == [4, 3]
    assert batch.sums(torch.tensor([1.0, 10, 100, 1000, 20, 2000])).tolist() == [1111, 2021]


def test_sums_are_float64() -> None:
    """A float32 sum over a thousand tokens would be off."""
    batch = pack([TokenExample(1, [1] * 1001, 1)], share=True)
    assert batch.sums(torch.full((1000,), -0.1)).item() == pytest.approx(1000 * torch.tensor(-0.1).item(), abs=1e-9)


def test_without_sharing_sequences_follow_each_other() -> None:
    batch = pack([PAIR], share=False)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5, 1, 2, 3, 7]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]
    assert batch.layout is not None and batch.layout.blocks == (Block(5, 0), Block(4, 0))
    assert batch.targets.tolist() == [3, 4, 5, 9, 3, 7, 9]
    assert batch.predictors.tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert batch.lengths.tolist() == [4, 3]


def test_padded_rows() -> None:
    batch = pad([PAIR])
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 7, 0]]
    assert batch.layout is None
    assert batch.targets.tolist() == [3, 4, 5, 9, 3, 7, 9]
    assert batch.predictors.tolist() == [1, 2, 3, 4, 6, 7, 8]


def test_an_answer_that_is_the_beginning_of_the_other() -> None:
    batch = pack([TokenPair(1, [1, 2, 3], [1, 2, 3, 4], 1, 1)], share=True)
    assert batch.tokens.tolist() == [[1, 2, 3]]
    assert batch.targets.tolist() == [2, 3, 4]
    assert batch.predictors.tolist() == [0, 1, 2]
    assert batch.entries.tolist() == [0, 1, 0, 1, 2]


def test_prompts_that_differ_share_only_their_beginning() -> None:
    batch = pack([TokenPair(1, [1, 2, 3, 4], [1, 5, 6, 7, 8], 3, 4)], share=True)
    assert batch.tokens.tolist() == [[1, 2, 3, 5, 6, 7]]
    assert batch.targets.tolist() == [4, 8]
    assert batch.predictors.tolist() == [2, 5]


def test_who_sees_whom() -> None:
    layout = Layout((Block(3, 2, 1), Block(4, 0)))
    assert layout.query_lengths == [5, 1, 4]
    assert layout.key_lengths == [5, 4, 4]
    assert layout.key_index.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 9]


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(prompt=tokens, chosen=tokens, rejected=tokens, completion=tokens)
def test_every_way_predicts_the_same_tokens_of_the_same_sequences(
    prompt: list[int], chosen: list[int], rejected: list[int], completion: list[int]
) -> None:
    items: list[TokenItem] = [
        TokenExample(1, prompt + completion, len(prompt)),
        TokenPair(2, prompt + chosen, prompt + rejected + [3], len(prompt), len(prompt)),
    ]
    expected = [completion, chosen, [*rejected, 3]]
    for way in ("shared", "separate", "padded"):
        batch = arrange(items, way)
        read = batch.targets[batch.entries].split(batch.lengths.tolist())
        assert [sequence.tolist() for sequence in read] == expected
        # The token that predicts stands right before the predicted one, in its sequence.
        before = batch.positions.flatten()[batch.predictors][batch.entries].split(batch.lengths.tolist())
        for places in before:
            assert places.tolist() == list(range(len(prompt) - 1, len(prompt) - 1 + len(places)))
        if way != "padded":
            assert batch.tokens.numel() == sum(input_tokens(item, way) for item in items)
