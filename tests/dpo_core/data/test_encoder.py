"""Texts are cut at a special token only where that changes no id."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from dpo_core.data.encoder import Encoder

OPENING = "<u>a<m>"


def tokenizer(*tokens: AddedToken, first: bool = False) -> Tokenizer:
    """One token a letter; `first`: a space before the first word."""
    letters = "▁ abmu<>|\n"
    made = Tokenizer(
        models.BPE(
            vocab={letter: place for place, letter in enumerate(letters)} | {"ab": 20, "▁a": 21},
            merges=[("a", "b"), ("▁", "a")],
        )
    )
    if first:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.add_special_tokens(list(tokens))
    return made


def token(text: str, **flags: bool) -> AddedToken:
    return AddedToken(text, special=True, normalized=False, **flags)


PLAIN = (token("<u>"), token("<m>"))


@pytest.mark.parametrize(
    ("tokens", "seam"),
    [
        (PLAIN, "<m>"),
        # a token that could lie across a cut before <m>: the one before it is taken
        ((*PLAIN, token("ab<")), None),
        ((*PLAIN, token("b<m")), "<u>"),
        ((token("<u>"), token("<m>"), token("a<m>")), "a<m>"),
        ((token("<u>"), token("<m>", lstrip=True)), "<u>"),
        ((token("<u>"), token("<m>", single_word=True)), "<u>"),
        # what stands behind a cut may do as it likes
        ((token("<u>"), token("<m>", rstrip=True)), "<m>"),
        ((token("<u>"), AddedToken("<m>", special=True, normalized=True)), "<u>"),
        ((token("<x>"),), None),
    ],
)
def test_the_seam_is_a_token_that_nothing_lies_across(tokens: tuple[AddedToken, ...], seam: str | None) -> None:
    assert Encoder(tokenizer(*tokens), OPENING).seam == seam
    assert Encoder(tokenizer(*tokens), None).seam is None


def test_what_is_put_before_every_piece_is_put_there_cut_or_not() -> None:
    made = tokenizer(*PLAIN)
    made.normalizer = normalizers.Prepend("a")
    encoder = Encoder(made, OPENING)
    assert encoder.seam == "<m>"
    whole = [made.encode(text, add_special_tokens=False).ids for text in (OPENING, OPENING + "b")]
    assert encoder.encode([[OPENING, OPENING + "b"]]) == [whole]


pieces = st.lists(st.sampled_from(["<u>", "<m>", "a", "b", " ", "\n", "<", "m>", "|", "ab"]), max_size=8).map("".join)


@given(opening=pieces, answers=st.lists(pieces, max_size=3), goes_on=st.booleans(), first=st.booleans())
def test_ids_are_those_of_the_whole_texts(opening: str, answers: list[str], goes_on: bool, first: bool) -> None:
    made = tokenizer(*PLAIN, first=first)
    family = [opening, *((opening if goes_on else "") + answer for answer in answers)]
    cut, whole = Encoder(made, OPENING), Encoder(made, None)
    assert cut.seam == "<m>"
    expected = [made.encode(text, add_special_tokens=False).ids for text in family]
    assert cut.encode([family, family]) == [expected, expected]
    assert whole.encode([family]) == [expected]
    assert cut.encode([]) == []
