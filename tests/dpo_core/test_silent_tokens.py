"""Tokens behind the prompt that carry no loss (results of tools), against dense forward passes with a mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from dpo_core import ways
from dpo_core.data.records import TokenExample, TokenItem, TokenPair
from dpo_core.engine import World
from dpo_core.objective import Packer, Preference, Supervised
from dpo_core.packing import rows_of
from dpo_core.preference_loss import PreferenceLoss
from dpo_core.scorer import Scorer
from dpo_core.spec import Way

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
WAYS: list[Way] = ["shared", "separate", "padded"]
CALL, RESULT, LAST, OTHER = [11, 12, 2], [20, 21, 22, 23], [31, 32, 2], [41, 2]
PROMPT = [1, 5, 6, 7]

PAIRS = [
    # the same call and the same result, then answers that differ
    TokenPair(1, PROMPT + CALL + RESULT + LAST, PROMPT + CALL + RESULT + OTHER, 4, 4, ((7, 11),), ((7, 11),)),
    # one answer calls a tool, the other doesn't
    TokenPair(2, PROMPT + CALL + RESULT + LAST, PROMPT + OTHER, 4, 4, ((7, 11),)),
    # the results differ in the middle of the span, and the rejected one has a second call
    TokenPair(
        3,
        PROMPT + CALL + RESULT + LAST,
        PROMPT + CALL + [20, 99] + CALL + RESULT + LAST,
        4,
        4,
        ((7, 11),),
        ((7, 9), (12, 16)),
    ),
    # what is silent in one answer the other learns
    TokenPair(4, PROMPT + CALL + RESULT + LAST, PROMPT + CALL + RESULT + OTHER, 4, 5, ((7, 11),), ((8, 9),)),
    # one is the beginning of the other
    TokenPair(5, PROMPT + CALL, PROMPT + CALL + RESULT + LAST, 4, 4, (), ((7, 11),)),
]
EXAMPLES = [TokenExample(1, PROMPT + CALL + RESULT + LAST, 4, ((7, 11),)), TokenExample(2, PROMPT + OTHER, 4)]


@pytest.fixture(scope="module")
def scorers(tiny_model: Path) -> dict[Way, Scorer]:
    """The same model three times: padded rows go through its own attention, packed ones through ours."""
    made: dict[Way, Scorer] = {}
    for way in WAYS:
        made[way] = Scorer(AutoModelForCausalLM.from_pretrained(tiny_model)).eval().double()
        if way != "padded":
            assert ways.choose(made[way], made[way], way, ALONE, bfloat16=False).way == way
    return made


def dense(scorer: Scorer, items: Sequence[TokenItem]) -> Tensor:
    """log π of every sequence [S], whole rows one at a time, by a mask that says token for token what counts."""
    sums = []
    for row in [row for item in items for row in rows_of(item)]:
        mask = torch.ones(len(row.tokens), dtype=torch.bool)
        mask[: row.prompt] = False
        for start, end in row.silent:
            mask[start:end] = False
        table = scorer.causal(input_ids=torch.tensor([row.tokens[:-1]])).logits[0].log_softmax(-1)
        values = table.gather(1, torch.tensor(row.tokens[1:]).unsqueeze(1)).squeeze(1)
        sums.append(values[mask[1:]].sum())
    return torch.stack(sums)


def packer(way: Way) -> Packer:
    return Packer(way, budget=10_000, chunk=10_000, device=CPU)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("items", [PAIRS, EXAMPLES], ids=["pairs", "examples"])
def test_every_way_is_the_dense_pass_with_a_mask(
    scorers: dict[Way, Scorer], items: Sequence[TokenItem], way: Way
) -> None:
    expected, found = dense(scorers["padded"], items), packer(way).measure(scorers[way], items)
    assert torch.allclose(found, expected, atol=1e-6)
    weights = torch.arange(1.0, len(found) + 1, dtype=torch.float64)
    ours = torch.autograd.grad((found * weights).sum(), list(scorers[way].parameters()))
    theirs = torch.autograd.grad((expected * weights).sum(), list(scorers["padded"].parameters()))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_a_shared_silent_span_is_read_once_and_predicted_never() -> None:
    batch = packer("shared").batch([PAIRS[0]])
    assert batch.tokens.tolist() == [PROMPT + CALL + RESULT + LAST[:-1] + OTHER[:-1]]
    assert batch.targets.tolist() == CALL + LAST + OTHER
    assert batch.lengths.tolist() == [6, 5]
    assert batch.sums(torch.arange(8.0)).tolist() == [15, 3 + 13]


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_counts_response_tokens_without_the_silent_ones(scorers: dict[Way, Scorer], way: Way) -> None:
    reference = torch.zeros(2, len(PAIRS), dtype=torch.float64)
    split = Preference(PAIRS, reference, packer(way), PreferenceLoss((("sigmoid_norm", 1.0),), beta=2.0))
    (share,) = split.shares(range(len(PAIRS)), ALONE)
    assert split.responses(range(len(PAIRS))).tolist() == [[6, 6, 6, 6, 3], [5, 2, 9, 7, 6]]
    value, _ = split.loss_of(scorers[way], split.micro_batch(share))
    log_pi = dense(scorers["padded"], [PAIRS[index] for index in share.indices]).view(-1, 2).T
    lengths = torch.tensor([[6.0, 6, 6, 6, 3], [5.0, 2, 9, 7, 6]], dtype=torch.float64)[:, share.indices]
    margin = log_pi[0] / lengths[0] - log_pi[1] / lengths[1]
    assert value.item() == pytest.approx(-torch.nn.functional.logsigmoid(2.0 * margin).sum().item(), abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_supervised_loss_is_the_mean_of_what_counts(scorers: dict[Way, Scorer], way: Way) -> None:
    items: list[TokenItem] = list(EXAMPLES)
    split = Supervised(items, packer(way))
    (share,) = split.shares([0, 1], ALONE)
    assert split.divisor([0, 1]) == 6 + 2
    assert split.loss_of(scorers[way], split.micro_batch(share))[0].item() == pytest.approx(
        -dense(scorers["padded"], EXAMPLES).sum().item(), abs=1e-6
    )
