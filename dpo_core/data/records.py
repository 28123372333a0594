"""The records that rows of a data file become: canonical text, then token ids, or a problem with a line number.

Imports nothing but the standard library.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, NewType

JsonText = NewType("JsonText", str)
"""A JSON value as text: hashable. Keys keep the file's order, in which chat templates write them."""

Spans = tuple[tuple[int, int], ...]
"""Half-open ranges of token positions, ascending, apart from each other."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `content` is plain text."""

    role: str
    content: str
    reasoning: str | None = None
    """Thinking text that stands beside the content; chat templates know it as `reasoning_content`."""

    tool_calls: JsonText | None = None
    """A list of `{"type": "function", "function": {"name", "arguments"}}`; the arguments are an object."""

    tool_call_id: str | None = None
    """In a turn of role `tool`: the call that it answers."""

    name: str | None = None


Text = str | tuple[Message, ...]
"""A plain string, or turns for the chat template."""


Shape = Literal[
    "openai_preference",
    "prompt_answers",
    "question_answers",
    "conversation_answers",
    "two_conversations",
    "two_transcripts",
    "scored_answers",
    "conversation",
    "prompt_completion",
]
"""What a row's fields are, as they were recognised; docs/data.md shows each."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Answer `chosen` is better than answer `rejected` to `prompt`.

    Either all three are strings, or all three are turns. An answer of several turns begins and ends with the
    assistant's; between them stand results of tools.
    """

    line: int
    """1-based line number in the file, here and in every record below."""

    prompt: Text
    chosen: Text
    rejected: Text
    tools: JsonText | None = None
    """The functions that the conversation may call, as a list of JSON schemas."""

    variables: JsonText | None = None
    """The row's own `chat_template_kwargs`, an object."""

    row: int = dataclasses.field(default=0, kw_only=True, compare=False)
    """1-based number of the row in the file: it tells apart the rows of one line, which `line` doesn't. It isn't part
    of what a record says."""

    shape: Shape | None = dataclasses.field(default=None, kw_only=True, compare=False)
    """Nor is this."""


@dataclass(frozen=True, slots=True)
class Example:
    """A supervised example: `completion` is what the model should answer to `prompt`."""

    line: int
    prompt: Text
    completion: Text
    tools: JsonText | None = None
    variables: JsonText | None = None
    row: int = dataclasses.field(default=0, kw_only=True, compare=False)
    shape: Shape | None = dataclasses.field(default=None, kw_only=True, compare=False)


ProblemCode = Literal[
    "bad_answer_role",
    "bad_prompt_end",
    "bad_role",
    "bad_score",
    "bad_text",
    "bad_tool_call",
    "bad_transcript",
    "cells_missing",
    "duplicate_field",
    "empty_answer",
    "empty_prompt",
    "equal_answers",
    "equal_scores",
    "equal_tokens",
    "line_too_long",
    "many_turns",
    "missing_field",
    "not_an_object",
    "not_csv",
    "not_json",
    "not_rendered",
    "not_utf8",
    "prompt_in_answer",
    "prompts_differ",
    "too_few_answers",
    "too_many_answers",
    "too_many_turns",
    "two_systems",
    "unknown_format",
    "unpaired",
    "unsupported_content",
    "unsupported_field",
    "wrong_method",
    "wrong_type",
    "zero_weight",
]
"""Why a row can't be used; `dpo_core.data.problems` has the words for each."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row can't be used. `message` says what is wrong and what to do; `field` is a path like `input.messages`."""

    line: int
    code: ProblemCode
    field: str | None
    message: str
    row: int = dataclasses.field(default=0, kw_only=True, compare=False)


FileProblemCode = Literal[
    "bad_header",
    "damaged_gzip",
    "damaged_parquet",
    "damaged_zstd",
    "empty_file",
    "not_data",
    "not_utf8",
    "parquet_too_large",
    "parquet_too_slow",
    "row_too_long",
    "text_after_array",
    "truncated_array",
    "truncated_gzip",
    "truncated_zstd",
    "unpacks_too_large",
]
"""Why a whole file can't be used; the message has the words."""


@dataclass(frozen=True, slots=True)
class FileProblem:
    """Why a whole file can't be used, or not to its end, whatever its rows are. `line` is where reading ended."""

    line: int
    code: FileProblemCode
    message: str


@dataclass(frozen=True, slots=True)
class TokenPair:
    """Two whole sequences of token ids (prompt and answer); the first `*_prompt` tokens of each carry no loss."""

    line: int
    chosen: list[int]
    rejected: list[int]
    chosen_prompt: int
    rejected_prompt: int
    chosen_silent: Spans = ()
    """Tokens behind the prompt that carry no loss all the same: results of tools between an answer's turns."""

    rejected_silent: Spans = ()

    @property
    def sequences(self) -> list[list[int]]:
        return [self.chosen, self.rejected]

    @property
    def length(self) -> int:
        """Tokens of the longer sequence."""
        return max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True, slots=True)
class TokenExample:
    """One whole sequence of token ids (prompt and completion); the first `prompt` tokens carry no loss."""

    line: int
    tokens: list[int]
    prompt: int
    silent: Spans = ()
    """As `TokenPair.chosen_silent`."""

    @property
    def sequences(self) -> list[list[int]]:
        return [self.tokens]

    @property
    def length(self) -> int:
        return len(self.tokens)


TokenItem = TokenPair | TokenExample
