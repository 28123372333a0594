"""A row as texts: its prompt, the whole conversation with each of its answers, and where an answer's turns begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from dpo_core.data.findings import OTHER_WORDS
from dpo_core.data.records import Example, JsonText, Message, Pair, Text
from dpo_core.data.template import ChatTemplate
from dpo_core.data.turns import as_turns
from dpo_core.errors import user_error


@dataclass(frozen=True, slots=True)
class Gap:
    """What an answer holds between two turns of the model's, as texts of the conversation up to the later one."""

    turns: int
    """Of the conversation, before that turn."""

    opening: str
    altered: str
    """The same, with other words behind the earlier turn of the model's."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with one of its answers."""

    turns: tuple[Message, ...]
    """Of both; a plain string is one turn."""

    prompt: int
    """How many of them are the prompt's."""

    text: str
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True)
class RowTexts:
    """All texts of a row."""

    row: Pair | Example
    template: ChatTemplate | None
    opening: str
    """The prompt, with the opening of the assistant's turn."""

    answers: tuple[Answered, ...]
    has_date: bool = False
    """Whether the template asked for today's date."""

    @property
    def all(self) -> list[str]:
        """The opening, then for every answer the whole conversation and both texts of each gap."""
        texts = [self.opening]
        for answer in self.answers:
            texts.append(answer.text)
            texts += [text for gap in answer.gaps for text in (gap.opening, gap.altered)]
        return texts

    def write(self, turns: Sequence[Message], tools: JsonText | None, *, opens: bool) -> str:
        """Another text, by the row's own variables. Raises TemplateRefusal."""
        assert self.template is not None  # noqa: S101 (what a template does is asked only where there is one)
        return self.template.render(turns, tools=tools, variables=self.row.variables, add_generation_prompt=opens)


def row_texts(template: ChatTemplate | None, row: Pair | Example) -> RowTexts:
    """Writes the texts of a row.

    Raises:
        RunError: the row has turns and there is no chat template.
        TemplateRefusal: the template can't render the row.
    """
    answers = (row.chosen, row.rejected) if isinstance(row, Pair) else (row.completion,)
    prompt = as_turns(row.prompt, "user")
    if template is None:
        start = plain(row.prompt)
        whole = [Answered((*prompt, *as_turns(it, "assistant")), len(prompt), start + plain(it)) for it in answers]
        return RowTexts(row, None, start, tuple(whole))
    template.wrote_date = False
    start = opening(template, row.prompt, row.tools, row.variables)
    rendered = tuple(_answered(template, row, prompt, as_turns(answer, "assistant")) for answer in answers)
    return RowTexts(row, template, start, rendered, template.wrote_date)


def opening(
    template: ChatTemplate | None, prompt: Text, tools: JsonText | None = None, variables: JsonText | None = None
) -> str:
    """The text behind which the model writes its answer. Raises what `row_texts` raises."""
    if template is None:
        return plain(prompt)
    return template.render(as_turns(prompt, "user"), tools=tools, variables=variables, add_generation_prompt=True)


def _answered(
    template: ChatTemplate, row: Pair | Example, prompt: tuple[Message, ...], answer: tuple[Message, ...]
) -> Answered:
    turns = (*prompt, *answer)
    text = template.render(turns, tools=row.tools, variables=row.variables, add_generation_prompt=False)
    own = [place for place in range(len(prompt), len(turns)) if turns[place].role == "assistant"]
    gaps = []
    for before, place in pairwise(own):
        start = opening(template, turns[:place], row.tools, row.variables)
        altered = start
        if place > before + 1:
            told = turns[before + 1]
            others = list(turns[:place])
            others[before + 1] = replace(told, content=OTHER_WORDS + told.content)
            altered = opening(template, tuple(others), row.tools, row.variables)
        gaps.append(Gap(place, start, altered))
    return Answered(turns, len(prompt), text, tuple(gaps))


def plain(text: Text) -> str:
    """The text of a string row, for a model without a chat template.

    Raises:
        RunError: the row has turns.
    """
    if isinstance(text, str):
        return text
    message = (
        "The rows are conversations, but the model has no chat template to render them with. "
        "Give one in `training.chat_template`, or start from a chat model, or use plain `prompt` and answer strings."
    )
    raise user_error("no_chat_template", message, param="training.chat_template")
