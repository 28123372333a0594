"""Which tokens of an answer the model writes itself, and which it is given in between."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from dpo_core.data.prefix import common_prefix
from dpo_core.data.records import Spans
from dpo_core.data.template import TemplateRefusal


def silent_spans(
    tokens: Sequence[int], prompt: int, gaps: Sequence[tuple[Sequence[int], Sequence[int]]], ends: Container[int]
) -> Spans:
    """What stands between an answer's own turns: from behind one's end token to the opening of the next.

    Args:
        tokens: the whole conversation.
        prompt: where the answer's first turn begins.
        gaps: for each later turn of the model's, the conversation up to the opening of that turn; and the same, but
            with other words in what stands before it, back to the model's turn before.
        ends: tokens that end a turn.

    Raises:
        TemplateRefusal: a turn of the model's has no end token of its own.
    """
    spans, start = [], prompt
    for opening, altered in gaps:
        following = common_prefix(tokens, opening)
        end = next((place + 1 for place in range(start, following) if tokens[place] in ends), None)
        # An end token that comes after what a tool said is the tool's.
        if end is None or end > common_prefix(tokens, altered):
            raise TemplateRefusal(
                "the chat template writes no end-of-turn token between a turn of the answer and what follows it, so "
                "what the model says can't be told from what it is told"
            )
        if end < following:
            spans.append((end, following))
        start = following
    return tuple(spans)


def end_of_answer(
    tokens: Sequence[int], prompt: int, ends: Container[int], is_blank: Callable[[int], bool]
) -> tuple[int, int] | None:
    """Where the answer's last turn ends: behind the first of the end tokens that stand together, and behind the last.

    None if the answer doesn't end with one: the text goes on behind it, or there is none.
    """
    place = len(tokens)
    while place > prompt and is_blank(tokens[place - 1]):
        place -= 1
    if place <= prompt or tokens[place - 1] not in ends:
        return None
    first = last = place
    while place > prompt + 1:
        place -= 1
        if tokens[place - 1] in ends:
            first = place
        elif not is_blank(tokens[place - 1]):
            break
    return first, last
