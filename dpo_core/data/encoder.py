"""Texts to token ids: what a tokenizer makes of each whole text, with as little work as that allows.

The texts of one row begin alike: the prompt, then one answer or the other. They are cut at the prompt's last
special token, so that what stands before it is encoded once. Special tokens are found in a text before
anything else is done to it, and each piece between them is encoded by itself. So the ids before such a cut and those
behind it are those of the whole text, if no other token can lie across it: `Encoder` makes sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

from tokenizers import AddedToken, Tokenizer

from dpo_core.data.words import Words, encode_all, takes_words_apart

BESIDE_A_CUT = ("", "a", " a", "a ", "\n", "\n\n", " ", "\u2581a", "é", "1", ".")
"""Texts that tokenizers treat in their own way at a beginning or an end."""


class Encoder:
    """Encodes by `tokenizer`, and cuts texts at the last special token of `opening`, if that is exact.

    `opening` is a prompt's end as the chat template writes it; None where there is no template.
    """

    def __init__(self, tokenizer: Tokenizer, opening: str | None) -> None:
        self.tokenizer = tokenizer
        self.seam = None if opening is None else _seam(tokenizer, opening)
        """The special token at which texts are cut, or None: every text is encoded whole."""

        words = Words(tokenizer) if takes_words_apart(tokenizer) else None
        self._encode = partial(encode_all, tokenizer) if words is None else words.encode

    def encode(self, families: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Ids of each text; the texts of a family probably begin with what stands before the seam of its first one.

        Equal pieces of text, in any family, are encoded once.
        """
        places: dict[str, int] = {}
        plans = []
        for texts in families:
            cut = self._cut(texts[0])
            pieces = [_pieces(text, texts[0], cut) for text in texts]
            plans.append([[places.setdefault(piece, len(places)) for piece in two if piece] for two in pieces])
        ids = self._encode(list(places))
        return [[list(chain.from_iterable(map(ids.__getitem__, plan))) for plan in family] for family in plans]

    def _cut(self, text: str) -> slice:
        """Where the seam stands in it for the last time; at its very beginning if it doesn't."""
        at = -1 if self.seam is None else text.rfind(self.seam)
        return slice(0, 0) if self.seam is None or at < 0 else slice(at, at + len(self.seam))


def _pieces(text: str, opening: str, cut: slice) -> tuple[str, str]:
    """Both sides of the cut, if the text is that of the opening up to behind the seam."""
    if text.startswith(opening[: cut.stop]):
        return text[: cut.start], text[cut.start :]
    return text, ""


def _seam(tokenizer: Tokenizer, opening: str) -> str | None:
    """The last token of `opening` at which any text may be cut."""
    added = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.normalized]
    there = sorted((token for token in added if token.content in opening), key=lambda it: opening.rfind(it.content))
    seams = (token.content for token in reversed(there) if _stands_alone(token, added))
    return next((seam for seam in seams if _cuts_exactly(tokenizer, seam)), None)


def _stands_alone(token: AddedToken, added: Sequence[AddedToken]) -> bool:
    """Whether the token is found wherever its text stands, whatever stands before it.

    Tokens are searched for from the left, the longest first. So one is missed only where another holds it, or
    begins before it and ends in it; and only such a token could lie across a cut before it.
    """
    text = token.content
    if token.lstrip or token.single_word:
        return False
    others = [other.content for other in added if other.content != text]
    across = any(other.endswith(text[:length]) for other in [*others, text] for length in range(1, len(text)))
    return not across and not any(text in other for other in others)


def _cuts_exactly(tokenizer: Tokenizer, seam: str) -> bool:
    """Tries it out: for the tokenizer whose pieces are not independent after all."""

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return all(
        ids(before + seam + after) == ids(before) + ids(seam + after)
        for before in BESIDE_A_CUT
        for after in BESIDE_A_CUT
    )
