"""Makes long rows fit: the oldest turns of the prompt go, the answers and a leading system turn stay.

A plain string prompt, where the model has no chat template, loses tokens from the left instead. A row
that doesn't fit even so is dropped; an answer is never cut, because its end of turn would be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dpo_core.data.records import Example, Message, Pair, Text, TokenExample, TokenItem, TokenPair
from dpo_core.data.render import Renderer


def fit(renderer: Renderer, row: Pair | Example, max_length: int | None) -> tuple[TokenItem | None, bool]:
    """`fit_pair` or `fit_example`."""
    if isinstance(row, Pair):
        return fit_pair(renderer, row, max_length)
    return fit_example(renderer, row, max_length)


def fit_pair(renderer: Renderer, pair: Pair, max_length: int | None) -> tuple[TokenPair | None, bool]:
    """The pair in at most `max_length` tokens a side, or None; and whether its prompt was shortened.

    Both sides keep the same prompt. Raises what `Renderer.pair` raises.
    """
    item = renderer.pair(pair)
    if max_length is None or item.length <= max_length:
        return item, False
    for prompt in shorter_prompts(pair.prompt):
        item = renderer.pair(replace(pair, prompt=prompt))
        if item.length <= max_length:
            return item, True
    excess = item.length - max_length
    if excess > _spare(renderer, pair.prompt, min(item.chosen_prompt, item.rejected_prompt)):
        return None, False
    start = len(renderer.plain_start)
    cut = replace(
        item,
        chosen=item.chosen[:start] + item.chosen[start + excess :],
        rejected=item.rejected[:start] + item.rejected[start + excess :],
        chosen_prompt=item.chosen_prompt - excess,
        rejected_prompt=item.rejected_prompt - excess,
    )
    return cut, True


def fit_example(renderer: Renderer, example: Example, max_length: int | None) -> tuple[TokenExample | None, bool]:
    """The same for a supervised example."""
    item = renderer.example(example)
    if max_length is None or item.length <= max_length:
        return item, False
    for prompt in shorter_prompts(example.prompt):
        item = renderer.example(replace(example, prompt=prompt))
        if item.length <= max_length:
            return item, True
    excess = item.length - max_length
    if excess > _spare(renderer, example.prompt, item.prompt):
        return None, False
    start = len(renderer.plain_start)
    tokens = item.tokens[:start] + item.tokens[start + excess :]
    return replace(item, tokens=tokens, prompt=item.prompt - excess), True


def least_length(renderer: Renderer, row: Pair | Example) -> int:
    """Tokens of the row with the shortest prompt that it can be given: the least max_length that keeps it."""
    *_, prompt = row.prompt, *shorter_prompts(row.prompt)
    if isinstance(row, Pair):
        pair = renderer.pair(replace(row, prompt=prompt))
        return pair.length - _spare(renderer, prompt, min(pair.chosen_prompt, pair.rejected_prompt))
    example = renderer.example(replace(row, prompt=prompt))
    return example.length - _spare(renderer, prompt, example.prompt)


def shorter_prompts(prompt: Text) -> Iterator[tuple[Message, ...]]:
    """Prompts with ever fewer turns, the longest first; each still begins with a user's turn, as templates demand."""
    if isinstance(prompt, str):
        return
    system = prompt[:1] if prompt[0].role == "system" else ()
    turns = prompt[len(system) :]
    for start in range(1, len(turns)):
        if turns[start].role == "user":
            yield system + turns[start:]


def _spare(renderer: Renderer, prompt: Text, prompt_tokens: int) -> int:
    """Tokens that a prompt may lose from its left: of plain text all but one, of turns none."""
    if renderer.template is not None or not isinstance(prompt, str):
        return 0
    return prompt_tokens - len(renderer.plain_start) - 1
