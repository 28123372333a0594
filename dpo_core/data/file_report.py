"""What is known of a data file once all of its rows were read. The API serves these models as they are."""

from __future__ import annotations

from collections import Counter

from dpo_core.data.problems import TITLES, Tally
from dpo_core.data.records import Shape
from dpo_core.prepare_report import Lengths, ReportFinding
from dpo_core.spec import Method, StrictModel


class Problem(StrictModel):
    """Rows that can't be used, by what is wrong with them."""

    code: str
    title: str
    message: str
    """What is wrong with the first of the rows, and what to do."""

    count: int
    lines: list[int]
    """The first 100 of them."""


class Damage(StrictModel):
    """Why the file as a whole can't be used."""

    code: str
    message: str
    line: int
    """Where reading ended."""


class LengthBias(StrictModel):
    """How often the longer answer is the chosen one. Far above 0.5, a model may learn length instead of quality."""

    share: float
    """Of the pairs whose answers differ in length."""

    low: float
    high: float
    """The share's 95 % interval (Wilson)."""

    pairs: int
    """Pairs whose answers differ in length."""

    equal: int
    """Pairs whose answers are equally long."""


class Statistics(StrictModel):
    """Of the rows that can be used. Lengths are in characters; from 65,536 on, percentiles are within 1 %."""

    turns: Lengths
    """Messages of prompt and (chosen) answer together."""

    prompt_characters: Lengths
    chosen_characters: Lengths | None
    rejected_characters: Lengths | None
    completion_characters: Lengths | None
    prompts: int
    """Different prompts, by their normalised text."""

    system_turns: int
    """Rows with a system turn."""

    tools: int
    """Rows that offer, call or answer for tools."""

    reasoning: int
    """Rows with thinking text beside an answer."""

    length_bias: LengthBias | None


class ShapeCount(StrictModel):
    """Good rows of one shape: what their fields were recognised as."""

    shape: Shape
    title: str
    count: int


class FileReport(StrictModel):
    """Of all rows, whichever method they are for."""

    format: str | None
    """What the file is, such as `JSONL`, `CSV` or `JSONL, gzip`; None where it is nothing that is read here."""

    shapes: list[ShapeCount]
    """The most frequent first."""

    rows: int
    pairs: int
    """Good rows for method `dpo`."""

    examples: int
    """Good rows for method `supervised`."""

    problems: list[Problem]
    damage: Damage | None
    findings: list[ReportFinding]
    """Rows that can be used, but that the user should know of."""

    statistics: Statistics | None
    """None where no row can be used."""


class TokenReport(StrictModel):
    """What a model's tokenizer and chat template make of the good rows."""

    method: Method
    """The one that the rows were rendered for: that of the first rows."""

    rows: int
    """Pairs or examples that were rendered."""

    lengths: Lengths
    """In tokens, before anything is cut; a pair counts with its longer side."""

    max_length: int
    """What `training.max_length` would be by itself."""

    max_length_reason: str
    longer: int
    """Rows that are longer than that: their prompts would be shortened, or they would be dropped."""

    problems: list[Problem]
    """Rows that this model's chat template or tokenizer makes unusable."""

    findings: list[ReportFinding]
    """What is odd about the rendered text, by the rows that have it."""


SHAPES: dict[Shape, str] = {
    "openai_preference": "OpenAI preference format",
    "prompt_answers": "a prompt with two answers",
    "question_answers": "a question or instruction with two answers",
    "conversation_answers": "a conversation with two answers (ShareGPT)",
    "two_conversations": "two conversations that begin alike",
    "two_transcripts": "two transcripts that begin alike (hh-rlhf)",
    "scored_answers": "a prompt with scored answers",
    "conversation": "a conversation, its last turn to be learned",
    "prompt_completion": "a prompt with its answer",
}


def problems_of(tally: Tally) -> list[Problem]:
    return [
        Problem(code=it.code, title=TITLES[it.code], message=it.message, count=it.count, lines=it.lines)
        for it in tally.findings()
    ]


def findings_of(tally: Tally) -> list[ReportFinding]:
    return [ReportFinding(code=it.code, message=it.message, count=it.count, lines=it.lines) for it in tally.findings()]


def shapes_of(counts: Counter[Shape]) -> list[ShapeCount]:
    return [ShapeCount(shape=shape, title=SHAPES[shape], count=count) for shape, count in counts.most_common()]
