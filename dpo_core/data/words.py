"""Texts to token ids word by word: ids of words are kept, because most words of a file come again.

A text is cut before each space (U+0020) that stands behind anything but space. Where a tokenizer takes texts apart by
one of SPLITS, its pieces end there anyway, and each of them is encoded by itself: a text's ids are those of its words,
one behind the other. No piece lies across a cut because every alternative of those patterns takes a space only as its
first sign, or behind other space. Nothing before a cut looks beyond it: `\\s+(?!\\S)` looks behind space alone, and
there is none. Nothing behind a cut looks back. NFC joins nothing to a space, nor a space to what stands before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + REST
SIGNS_OR_PATHS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + REST
LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
SPLITS = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + SIGNS,
    "Qwen": ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + SIGNS,
    "GPT-OSS": f"{LOWER}{ENDINGS}?|{UPPER}{ENDINGS}?" + r"|\p{N}{1,3}" + SIGNS_OR_PATHS,
    "Mistral": f"{LOWER}|{UPPER}" + r"|\p{N}" + SIGNS_OR_PATHS,
}
"""Patterns by who uses them first; `\\s` in them is part of what Python calls space."""

LETTERS = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
"""Writes bytes as letters; with the regex, it takes texts apart as GPT-2 does."""

WORDS_KEPT = 2**16
WORD_LENGTH = 96
"""Characters of the longest word that is kept: together some 40 MB at most."""

MARK = "\0"
"""Where texts are cut; a text that holds it already is not."""


class Words:
    """Encodes by a `tokenizer` that `takes_words_apart`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        """By word, with the space before it. None ends with space: behind it there would be no cut."""

        self._numbers: dict[int, int] = {}
        """Every id as one object, by itself: many copies would not fit into a core's cache."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        if any(MARK in text for text in texts):
            return encode_all(self._tokenizer, texts)
        cut = [_words(text) for text in texts]
        new = set[str]().union(*cut).difference(self._known)
        if loose := {word for word in new if word[-1:].isspace()}:
            cut = [words if loose.isdisjoint(words) else _joined(words) for words in cut]
            new = set[str]().union(*cut).difference(self._known)
        if new:
            self._learn(list(new))
        ids = [list(chain.from_iterable(map(self._known.__getitem__, words))) for words in cut]
        self._forget(new)
        return ids

    def _learn(self, words: list[str]) -> None:
        ids = encode_all(self._tokenizer, [word.rstrip(MARK) for word in words])
        one = self._numbers.setdefault
        self._known.update(zip(words, (tuple(map(one, it, it)) for it in ids), strict=True))

    def _forget(self, new: set[str]) -> None:
        """What is too long to come again, or all, so that memory stays bounded."""
        if len(self._known) > WORDS_KEPT:
            self._known.clear()
        for word in new:
            if len(word) > WORD_LENGTH:
                self._known.pop(word, None)


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, encoded whole."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _words(text: str) -> list[str]:
    """Cut before every space. The last word is marked where it ends with space: it would not end here inside a text."""
    words = text.replace(" ", MARK + " ").split(MARK)
    if words[-1][-1:].isspace():
        words[-1] += MARK
    return words


def _joined(words: list[str]) -> list[str]:
    """Without the cuts that stand behind space."""
    joined = words[:1]
    for word in words[1:]:
        if joined[-1][-1:].isspace():
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def takes_words_apart(tokenizer: Tokenizer) -> bool:
    """Whether a text's ids are those of its words, as said above."""
    model, normalizer = tokenizer.model, tokenizer.normalizer
    if not isinstance(model, models.BPE) or model.dropout:  # with dropout no text has the same ids twice
        return False
    if normalizer is not None and _state(normalizer) != {"type": "NFC"}:
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    return _splits(_state(tokenizer.pre_tokenizer)) and all(map(_stays_whole, added))


def _splits(state: object) -> bool:
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    known = [[split | {"pattern": {"Regex": pattern}}, LETTERS] for pattern in SPLITS.values()]
    return state in [LETTERS | {"use_regex": True}, *({"type": "Sequence", "pretokenizers": it} for it in known)]


def _stays_whole(token: AddedToken) -> bool:
    """Whether no cut goes through an added token or the space that it takes with it, nor changes what it may follow."""
    return not (token.rstrip or token.single_word or re.search(r"\S ", token.content))


def _state(part: Any) -> object:
    """A part of a tokenizer as tokenizer.json has it, but for what concerns offsets; None where there is none."""
    if part is None:
        return None
    return json.loads(part.__getstate__(), object_hook=lambda it: {k: it[k] for k in it if k != "trim_offsets"})
