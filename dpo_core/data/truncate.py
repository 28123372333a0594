"""Makes long rows fit: the oldest turns of the prompt go, the answers and a leading system turn stay.

A plain string prompt, where the model has no chat template, loses tokens from the left instead. A row
that doesn't fit even so is dropped; an answer is never cut, because its end of turn would be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dpo_core.data.records import Example, Message, Pair, Text, TokenItem, TokenPair
from dpo_core.data.render import Renderer
from dpo_core.data.template import TemplateRefusal


def fit(renderer: Renderer, row: Pair | Example, max_length: int | None) -> tuple[TokenItem | None, Text]:
    """The row in at most `max_length` tokens a sequence, or None; and the turns of its prompt that are left.

    Both sides of a pair keep the same prompt. Raises what `Renderer.pair` raises for the whole row.
    """
    item = _item(renderer, row, row.prompt)
    if max_length is None or item.length <= max_length:
        return item, row.prompt
    shorter = _longest_that_fits(renderer, row, max_length)
    if shorter is not None:
        return shorter
    excess = item.length - max_length
    if excess > _spare(renderer, row.prompt, item):
        return None, row.prompt
    return _without_beginning(item, len(renderer.plain_start), excess), row.prompt


def least_length(renderer: Renderer, row: Pair | Example) -> int:
    """Tokens of the row with the shortest prompt that it can be given: the least max_length that keeps it."""
    for start in reversed(starts(row.prompt)):
        item = _rendered(renderer, row, prompt_from(row.prompt, start))
        if item is not None:
            return item.length
    item = _item(renderer, row, row.prompt)
    return item.length - _spare(renderer, row.prompt, item)


def starts(prompt: Text) -> list[int]:
    """The turns with which a shorter prompt may begin, that of the longest first: a user's, as templates demand."""
    if isinstance(prompt, str):
        return []
    first = 1 + (prompt[0].role == "system")
    return [place for place in range(first, len(prompt)) if prompt[place].role == "user"]


def prompt_from(prompt: Text, start: int) -> tuple[Message, ...]:
    """The turns of `prompt` from `start` on, behind its system turn if it begins with one."""
    assert not isinstance(prompt, str)  # noqa: S101 (a text has no turns to start from)
    return (*(turn for turn in prompt[:1] if turn.role == "system"), *prompt[start:])


def _longest_that_fits(
    renderer: Renderer, row: Pair | Example, max_length: int
) -> tuple[TokenItem, tuple[Message, ...]] | None:
    """By bisection. What the template refuses is passed over; no prompt is rendered twice."""
    found, places = None, starts(row.prompt)
    low, high = 0, len(places)
    while low < high:
        middle = (low + high) // 2
        place, item, prompt = _first_rendered(renderer, row, places[:high], middle)
        if item is None or item.length <= max_length:
            high = middle
            found = found if item is None else (item, prompt)
        else:
            low = place + 1
    return found


def _first_rendered(
    renderer: Renderer, row: Pair | Example, places: Sequence[int], first: int
) -> tuple[int, TokenItem | None, tuple[Message, ...]]:
    """The first index from `first` on whose prompt the template takes, and its item; None if there is none."""
    for index in range(first, len(places)):
        prompt = prompt_from(row.prompt, places[index])
        item = _rendered(renderer, row, prompt)
        if item is not None:
            return index, item, prompt
    return len(places), None, ()


def _rendered(renderer: Renderer, row: Pair | Example, prompt: Text) -> TokenItem | None:
    """None where the template refuses a prompt that the user never wrote so: that is no fault of the row."""
    try:
        return _item(renderer, row, prompt)
    except TemplateRefusal:
        return None


def _item(renderer: Renderer, row: Pair | Example, prompt: Text) -> TokenItem:
    if isinstance(row, Pair):
        return renderer.pair(replace(row, prompt=prompt))
    return renderer.example(replace(row, prompt=prompt))


def _without_beginning(item: TokenItem, start: int, count: int) -> TokenItem:
    """Without `count` tokens of its prompt, from `start` on."""
    if isinstance(item, TokenPair):
        return replace(
            item,
            chosen=item.chosen[:start] + item.chosen[start + count :],
            rejected=item.rejected[:start] + item.rejected[start + count :],
            chosen_prompt=item.chosen_prompt - count,
            rejected_prompt=item.rejected_prompt - count,
        )
    return replace(item, tokens=item.tokens[:start] + item.tokens[start + count :], prompt=item.prompt - count)


def _spare(renderer: Renderer, prompt: Text, item: TokenItem) -> int:
    """Tokens that a prompt may lose from its left: of plain text all but one, of turns none."""
    if renderer.template is not None or not isinstance(prompt, str):
        return 0
    tokens = min(item.chosen_prompt, item.rejected_prompt) if isinstance(item, TokenPair) else item.prompt
    return tokens - len(renderer.plain_start) - 1
