"""One chunk of raw rows to token items and facts, in whatever process: what `dataset.load` does in parallel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dpo_core.data.facts import FileFacts
from dpo_core.data.fingerprints import Fingerprint, fingerprint
from dpo_core.data.formats import RawRow, records
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import Example, FileProblem, Pair, RowProblem, TokenItem, TokenPair
from dpo_core.data.render import Renderer
from dpo_core.data.template import TemplateRefusal
from dpo_core.data.token_table import ROW, Rows
from dpo_core.data.truncate import fit, least_length

REPEATED_ROLE = "Two turns of one role follow each other in the prompt; the chat template takes them, so they stay."
EQUAL_TOKENS = (
    "The two answers are different texts, but the same tokens: the chat template or the tokenizer takes their "
    "difference away. Correct or remove the row, or give another `chat_template`."
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one file, as they come from it."""

    file: int
    rows: Sequence[RawRow | FileProblem]


@dataclass(slots=True)
class Portion:
    """What became of a chunk. Arrays as in `dpo_core.data.token_table`, counted from their own beginning."""

    file: int
    facts: FileFacts = field(default_factory=FileFacts)
    """Of the rows as they are, uncut; only `pairs` are those that are left."""

    cut: FileFacts = field(default_factory=FileFacts)
    """What became of the rows that were too long: `fitting`, and problems that they have only now."""

    lengths: Counter[int] = field(default_factory=Counter)
    """Of the pairs, uncut."""

    rows: Rows = field(default_factory=lambda: np.empty(0, ROW))
    tokens: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, "<i4"))
    silent: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), "<i4"))


@dataclass(frozen=True, slots=True)
class Rendering:
    """What `map_in_order` starts in each process."""

    renderer: Callable[[], Renderer]
    options: ReadOptions
    max_length: int | None

    def __call__(self) -> Callable[[Chunk], Portion]:
        """Raises what making the renderer raises."""
        renderer = self.renderer()
        return lambda chunk: render(chunk, renderer, self.options, self.max_length)


def render(chunk: Chunk, renderer: Renderer, options: ReadOptions, max_length: int | None) -> Portion:
    """Parses, renders and tokenizes rows, and cuts them to `max_length`; None keeps whole sequences.

    Raises:
        RunError: the rows need a chat template that the model doesn't have.
    """
    portion = Portion(chunk.file)
    facts = portion.facts
    rows = list(_good_rows(chunk, options, facts))
    whole = [_checked(row, item, facts) for row, item in zip(rows, _rendered(rows, renderer), strict=True)]
    facts.findings.merge(renderer.take_findings())
    bad = {row.row for row, item in zip(rows, whole, strict=True) if item is None}
    made = list[tuple[TokenItem, Fingerprint]]()
    for row, item in zip(rows, whole, strict=True):
        if item is None:
            continue
        portion.lengths[item.length] += 1
        if repeats_a_role(row):
            facts.findings.add("repeated_role", row, REPEATED_ROLE)
        fitting: TokenItem | None = item
        if max_length is not None and item.length > max_length:
            fitting = _cut(row, renderer, max_length, portion.cut, bad)
        if fitting is not None:
            made.append((fitting, fingerprint(row, chunk.file)))
    renderer.take_findings()  # those of shorter prompts, whose rows have theirs already
    facts.pairs = len(made)
    portion.rows, portion.tokens, portion.silent = arrays(made)
    return portion


def _good_rows(chunk: Chunk, options: ReadOptions, facts: FileFacts) -> Iterator[Pair | Example]:
    for raw in chunk.rows:
        if isinstance(raw, FileProblem):
            facts.damage = raw
            continue
        facts.rows += 1
        for row in records(raw, options):
            if isinstance(row, RowProblem):
                facts.problems.add(row.code, row, row.message)
            else:
                yield row


def _rendered(rows: Sequence[Pair | Example], renderer: Renderer) -> Sequence[TokenItem | TemplateRefusal]:
    """Of each row its sequences, uncut; all rows of a file are of one kind."""
    pairs = [row for row in rows if isinstance(row, Pair)]
    return renderer.pairs(pairs) if pairs else renderer.examples([row for row in rows if isinstance(row, Example)])


def _checked(
    row: Pair | Example, item: TokenItem | TemplateRefusal, facts: FileFacts, known: Container[int] = ()
) -> TokenItem | None:
    """None where the row has no item that could be trained on, which `facts` then say, unless it is `known` as bad."""
    if isinstance(item, TemplateRefusal):
        code, message = "not_rendered", f"The row can't be rendered: {item}. Correct or remove the row."
    elif isinstance(item, TokenPair) and item.chosen == item.rejected:
        code, message = "equal_tokens", EQUAL_TOKENS
    else:
        return item
    if row.row not in known:
        facts.problems.add(code, row, message)
    return None


def _cut(
    row: Pair | Example, renderer: Renderer, max_length: int, facts: FileFacts, bad: Container[int]
) -> TokenItem | None:
    """The row in at most `max_length` tokens; None where that can't be, which `facts` then say."""
    fitting, _ = fit(renderer, row, max_length)
    if fitting is None:
        facts.fitting.add("dropped", row, "")
        facts.drop((least_length(renderer, row), row.line))
        return None
    item = _checked(row, fitting, facts, bad)
    if item is not None:
        facts.fitting.add("truncated", row, "")
    return item


def repeats_a_role(row: Pair | Example) -> bool:
    roles = [] if isinstance(row.prompt, str) else [turn.role for turn in row.prompt]
    return any(role == after and role in ("user", "assistant") for role, after in pairwise(roles))


def arrays(
    made: Sequence[tuple[TokenItem, Fingerprint]],
) -> tuple[Rows, NDArray[np.int32], NDArray[np.int32]]:
    """Rows, tokens and silent spans of items and what their rows are known by."""
    rows, tokens, silent = [], list[int](), list[tuple[int, int]]()
    for item, known in made:
        if isinstance(item, TokenPair):
            both, prompts = (item.chosen, item.rejected), (item.chosen_prompt, item.rejected_prompt)
            spans = item.chosen_silent, item.rejected_silent
        else:
            both, prompts, spans = (item.tokens, []), (item.prompt, 0), (item.silent, ())
        begin = len(tokens), len(silent)
        rows.append((known, begin[0], *map(len, both), *prompts, begin[1], *map(len, spans)))
        for sequence, ranges in zip(both, spans, strict=True):
            tokens += sequence
            silent += ranges
    return np.array(rows, ROW), np.array(tokens, "<i4"), np.array(silent, "<i4").reshape(-1, 2)
