"""Some rows of a file as the model will see them: every token, what it is for, and what was cut away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from dpo_core.data.formats import RawRow, raw_rows, records
from dpo_core.data.options import ReadOptions
from dpo_core.data.prefix import common_prefix
from dpo_core.data.records import Example, FileProblem, Pair, RowProblem, Spans, Text, TokenItem, TokenPair
from dpo_core.data.render import Renderer
from dpo_core.data.rendering import EQUAL_TOKENS
from dpo_core.data.template import TemplateRefusal
from dpo_core.data.truncate import fit, least_length
from dpo_core.spec import StrictModel

ROWS = 3
"""So many are shown where no line is asked for."""

WINDOW = 512
"""Tokens that are shown of a long sequence's beginning and end, and on each side of where its answer begins."""

MOST_TOKENS = 2**16
"""In a whole preview; rows behind them are left out."""

LEAD_IN = 8
"""Tokens before those that are shown, so that a character that is several tokens is put together."""

TokenRole = Literal["prompt", "learned", "silent"]


class PreviewToken(StrictModel):
    id: int
    text: str
    """What the token adds to the text: of a character that is several tokens, the last one has it."""

    role: TokenRole
    """`learned` carries loss; `prompt` and `silent` (results of tools, inside an answer) don't."""


class PreviewSequence(StrictModel):
    answer: Literal["chosen", "rejected", "completion"]
    tokens: list[PreviewToken]
    learned: int
    """Tokens that carry loss, with those that are not shown."""

    length: int
    """All of its tokens."""

    left_out: list[tuple[int, int]] = Field(default_factory=list)
    """Places of tokens that are not shown: half-open ranges, from 0. Empty for a sequence of up to 2,048 tokens."""


class PreviewCut(StrictModel):
    """What `max_length` took away from the prompt."""

    tokens: int
    turns: list[int]
    """Places in the row's prompt, from 0; none where a plain text lost its beginning."""


class Remark(StrictModel):
    """A problem, for which the row can't be used, or a finding."""

    code: str
    field: str | None = None
    message: str


class PreviewRow(StrictModel):
    """A pair or an example; a row that can't be used has no sequences."""

    line: int
    sequences: list[PreviewSequence] = Field(default_factory=list)
    shared: int = 0
    """Tokens that both answers begin with: they are computed once."""

    cut: PreviewCut | None = None
    findings: list[Remark] = Field(default_factory=list)
    problems: list[Remark] = Field(default_factory=list)


class Preview(StrictModel):
    rows: list[PreviewRow]
    missing_lines: list[int]
    """Lines that were asked for and hold no row."""

    rows_left_out: int = 0
    """Rows that were asked for, behind the 65,536 tokens that a preview may show."""


def preview(
    path: Path,
    renderer: Renderer,
    options: ReadOptions,
    *,
    rows: int = ROWS,
    lines: Sequence[int] = (),
    max_length: int | None = None,
) -> Preview:
    """The rows on `lines`, at most `rows` of each, or the first `rows` of the file.

    Raises:
        RunError: the rows need a chat template that the model doesn't have.
        OSError: the file can't be read.
    """
    renderer.take_findings()
    shown: list[PreviewRow] = []
    left_out: list[int] = []
    tokens = 0
    for raw in _asked(path, lines, rows):
        if isinstance(raw, FileProblem):
            shown.append(PreviewRow(line=raw.line, problems=[Remark(code=raw.code, message=raw.message)]))
            continue
        for row in records(raw, options):
            if tokens >= MOST_TOKENS:
                left_out.append(row.line)
            elif isinstance(row, RowProblem):
                remark = Remark(code=row.code, field=row.field, message=row.message)
                shown.append(PreviewRow(line=row.line, problems=[remark]))
            else:
                shown.append(preview_row(row, renderer, max_length))
                tokens += sum(len(sequence.tokens) for sequence in shown[-1].sequences)
    missing = set(lines) - {row.line for row in shown} - set(left_out)
    return Preview(rows=shown, missing_lines=sorted(missing), rows_left_out=len(left_out))


def _asked(path: Path, lines: Sequence[int], rows: int) -> Iterator[RawRow | FileProblem]:
    """Reads no further than it must."""
    if not lines:
        yield from islice(raw_rows(path), rows)
        return
    left = dict.fromkeys(lines, rows)
    for raw in raw_rows(path):
        if raw.line > max(lines):
            return
        if isinstance(raw, FileProblem):
            yield raw
        elif left.get(raw.line):
            left[raw.line] -= 1
            yield raw
        elif raw.line == max(lines):
            return


def preview_row(row: Pair | Example, renderer: Renderer, max_length: int | None) -> PreviewRow:
    """One row, in at most `max_length` tokens. Takes the renderer's findings.

    Raises:
        RunError: the row needs a chat template that the model doesn't have.
    """

    def unusable(code: str, message: str) -> PreviewRow:
        renderer.take_findings()
        return PreviewRow(line=row.line, problems=[Remark(code=code, message=message)])

    try:
        whole, _ = fit(renderer, row, None)
        found = renderer.take_findings()
        item, prompt = fit(renderer, row, max_length)
        if item is None or whole is None:
            least = least_length(renderer, row)
            return unusable(
                "too_long", f"The row needs {least:,} tokens even with its shortest prompt: it is left out."
            )
    except TemplateRefusal as refusal:
        return unusable("not_rendered", f"The row can't be rendered: {refusal}. Correct or remove the row.")
    renderer.take_findings()  # those of shorter prompts
    equal = Remark(code="equal_tokens", message=EQUAL_TOKENS)
    return PreviewRow(
        line=row.line,
        sequences=_sequences(item, renderer.tokenizer),
        shared=common_prefix(item.chosen, item.rejected) if isinstance(item, TokenPair) else 0,
        cut=_cut(row, whole, item, prompt),
        findings=[Remark(code=it.code, message=it.message) for it in found],
        problems=[equal] if isinstance(item, TokenPair) and item.chosen == item.rejected else [],
    )


def _cut(row: Pair | Example, whole: TokenItem, item: TokenItem, prompt: Text) -> PreviewCut | None:
    """What `item`, with the turns of `prompt`, has no more of `whole`."""
    if item == whole:
        return None
    kept = not isinstance(prompt, str) and prompt[0].role == "system"
    gone = list(range(kept, kept + len(row.prompt) - len(prompt)))
    return PreviewCut(tokens=whole.length - item.length, turns=gone)


def _sequences(item: TokenItem, tokenizer: Tokenizer) -> list[PreviewSequence]:
    if isinstance(item, TokenPair):
        return [
            _sequence("chosen", item.chosen, item.chosen_prompt, item.chosen_silent, tokenizer),
            _sequence("rejected", item.rejected, item.rejected_prompt, item.rejected_silent, tokenizer),
        ]
    return [_sequence("completion", item.tokens, item.prompt, item.silent, tokenizer)]


def _sequence(
    answer: Literal["chosen", "rejected", "completion"],
    tokens: Sequence[int],
    prompt: int,
    silent: Spans,
    tokenizer: Tokenizer,
) -> PreviewSequence:
    roles: list[TokenRole] = ["prompt" if place < prompt else "learned" for place in range(len(tokens))]
    for start, end in silent:
        for place in range(start, end):
            roles[place] = "silent"
    windows = list(_windows(len(tokens), prompt))
    ends = pairwise([0, *chain.from_iterable(windows), len(tokens)])
    return PreviewSequence(
        answer=answer,
        tokens=[token for window in windows for token in _shown(tokens, roles, window, tokenizer)],
        learned=roles.count("learned"),
        length=len(tokens),
        left_out=[gap for gap in islice(ends, 0, None, 2) if gap[0] < gap[1]],
    )


def places(sequence: PreviewSequence) -> Iterator[int]:
    """Where in the sequence each of its shown tokens stands."""
    left_out = iter([*sequence.left_out, (sequence.length, sequence.length)])
    place = 0
    for start, end in left_out:
        yield from range(place, start)
        place = end


def _windows(length: int, prompt: int) -> Iterator[tuple[int, int]]:
    """What is shown of a sequence: ascending ranges that do not touch."""
    start, end = 0, min(WINDOW, length)
    for begin, stop in ((prompt - WINDOW, prompt + WINDOW), (length - WINDOW, length)):
        if begin > end:
            yield start, end
            start = begin
        end = max(end, min(stop, length))
    yield start, end


def _shown(
    tokens: Sequence[int], roles: Sequence[TokenRole], window: tuple[int, int], tokenizer: Tokenizer
) -> Iterator[PreviewToken]:
    start, end = window
    stream = DecodeStream(skip_special_tokens=False)
    for place in range(max(0, start - LEAD_IN), end):
        text = stream.step(tokenizer, tokens[place]) or ""
        if place >= start:
            yield PreviewToken(id=tokens[place], text=text, role=roles[place])
