"""Words encoded one by one are the whole text's ids: for each pattern that takes texts apart so, and for no other."""

from __future__ import annotations

from collections.abc import Callable
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from dpo_core.data import words
from dpo_core.data.words import MARK, SPLITS, WORD_LENGTH, Words, encode_all, takes_words_apart

CORPUS = ["the weather isn't what it was in 1999, they'll say", "a  b\n c  \n\n d", "é ü don't/ (x) ... <b> ok"]
SPECIAL = (AddedToken("<|end|>", special=True, normalized=False), AddedToken("  ", normalized=True))


def tokenizer(pattern: str | None, *added: AddedToken) -> Tokenizer:
    made = Tokenizer(models.BPE())
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence([*split, letters]) if split else letters
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(CORPUS * 3, trainer)
    made.add_tokens(list(added))
    return made


KNOWN = {name: tokenizer(pattern, *SPECIAL) for name, pattern in [*SPLITS.items(), ("GPT-2, by itself", None)]}
SIGNS = [
    "a",
    "B",
    "é",
    "e\u0301",
    "\u0301",
    "日本",
    "1999",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\x1c",
    "\u00a0",
    "\u2003",
    "\u200b",
]
SIGNS += ["'s", "'", "...", "/", "_", "<|end|>", "<|", "🙂", "the", " weather", "isn't", "\0"]
texts = st.lists(st.sampled_from(SIGNS), max_size=12).map("".join) | st.text(max_size=12)


@pytest.mark.parametrize("name", KNOWN)
@given(some=st.lists(texts, max_size=4), nfc=st.booleans())
def test_ids_are_those_of_the_whole_texts(name: str, some: list[str], nfc: bool) -> None:
    made = KNOWN[name]
    made.normalizer = normalizers.NFC() if nfc else None
    assert takes_words_apart(made)
    encoder, expected = Words(made), encode_all(made, some)
    assert encoder.encode(some) == expected
    assert encoder.encode([*some, *some]) == expected * 2, "known words make what new ones make"


@pytest.mark.parametrize("pattern", SPLITS.values(), ids=SPLITS)
def test_no_sign_that_python_takes_for_none_is_space(pattern: str) -> None:
    made = tokenizer(pattern)
    odd = [
        chr(code)
        for code in range(1, 0x10000)
        if category(chr(code))[0] in "ZC" and category(chr(code)) not in ("Cs", "Co", "Cn")
    ]
    for sign in (it for it in odd if not it.isspace()):
        assert Words(made).encode([f"a{sign} b{sign}  c"]) == encode_all(made, [f"a{sign} b{sign}  c"])


def dropout(made: Tokenizer) -> None:
    made.model.dropout = 0.5


def prefix(made: Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def whole(made: Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def lower(made: Tokenizer) -> None:
    made.normalizer = normalizers.Lowercase()


def other_model(made: Tokenizer) -> None:
    made.model = models.WordLevel({"a": 0}, unk_token="a")


def no_split(made: Tokenizer) -> None:
    made.pre_tokenizer = None


@pytest.mark.parametrize("change", [dropout, prefix, whole, lower, other_model, no_split])
def test_any_other_tokenizer_gets_whole_texts(change: Callable[[Tokenizer], None]) -> None:
    made = tokenizer(None)
    assert takes_words_apart(made)
    change(made)
    assert not takes_words_apart(made)


@pytest.mark.parametrize(
    ("token", "apart"),
    [
        (AddedToken("<m>", lstrip=True), True),
        (AddedToken("<m>", rstrip=True), False),
        (AddedToken("<m>", single_word=True), False),
        (AddedToken("of text"), False),
        (AddedToken("   "), True),
    ],
)
def test_no_added_token_may_lie_across_a_cut(token: AddedToken, apart: bool) -> None:
    made = tokenizer(None, token)
    assert takes_words_apart(made) == apart
    text = ["a <m>  b <m> c", "beginning of text   and of   text"]
    if apart:
        assert Words(made).encode(text) == encode_all(made, text)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "WORDS_KEPT", 10)
    encoder, made = Words(KNOWN["Qwen"]), KNOWN["Qwen"]
    for number in range(30):
        text = f"a{number} b{number} {'c' * WORD_LENGTH}{number} d"
        assert encoder.encode([text]) == encode_all(made, [text])
        assert len(encoder._known) <= 10
        assert all(len(word) <= WORD_LENGTH for word in encoder._known)
    assert encoder.encode([f"a{MARK} b"]) == encode_all(made, [f"a{MARK} b"])
