"""Files to token items: what `prepare` measures and the trainer trains on, by the same functions.

Imports no torch. Order is the file's order; shuffling is the trainer's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from dpo_core.errors import RunError, user_error
from dpo_core.formats import read_rows
from dpo_core.records import Example, Finding, Pair, RowProblem, Text, TokenExample, TokenItem, TokenPair
from dpo_core.render import Renderer
from dpo_core.spec import Method, RunSpec
from dpo_core.truncate import fit_example, fit_pair

__all__ = ["Dataset", "TokenExample", "TokenItem", "TokenPair", "load", "load_splits", "prompt_key", "split"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """One file, read, rendered and cut to length. `items` are all TokenPair (dpo) or all TokenExample (supervised)."""

    rows: int
    """Rows of the file, good and bad."""

    items: list[TokenItem] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    """`prompt_key` of each item."""

    dropped_lines: list[int] = field(default_factory=list)
    """Rows that are too long even with the shortest prompt."""

    truncated_lines: list[int] = field(default_factory=list)
    """Rows whose prompt was shortened."""

    problems: list[RowProblem] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def load(path: Path, method: Method, renderer: Renderer, max_length: int | None) -> Dataset:
    """Reads every row of `path`; None for `max_length` keeps whole sequences.

    Raises:
        RunError: the rows need a chat template that the model doesn't have, or its template fails on a row.
    """
    rows = 0
    data = Dataset(rows=0)
    for rows, row in enumerate(read_rows(path, method), start=1):
        if isinstance(row, RowProblem):
            data.problems.append(row)
            continue
        item, truncated = _fit(renderer, row, max_length)
        if item is None:
            data.dropped_lines.append(row.line)
            continue
        if truncated:
            data.truncated_lines.append(row.line)
        data.items.append(item)
        data.keys.append(prompt_key(row.prompt))
    raise NotImplementedError(rows)


def _fit(renderer: Renderer, row: Pair | Example, max_length: int | None) -> tuple[TokenItem | None, bool]:
    if isinstance(row, Pair):
        return fit_pair(renderer, row, max_length)
    return fit_example(renderer, row, max_length)


def prompt_key(prompt: Text) -> str:
    """A digest of the normalised prompt: case-folded, runs of whitespace made one space."""
    turns = [("user", prompt)] if isinstance(prompt, str) else [(turn.role, turn.content) for turn in prompt]
    normal = "\n".join(f"{role} {' '.join(content.casefold().split())}" for role, content in turns)
    return hashlib.blake2b(normal.encode(), digest_size=16).hexdigest()


def split(data: Dataset, fraction: float, seed: int) -> tuple[list[TokenItem], list[TokenItem]]:
    """Training and validation items; no normalised prompt is on both sides.

    Prompts are taken in the order of a seeded digest until `fraction` of the items is held out, so the
    choice depends on prompts and seed, not on the order of the file. At least one prompt stays in training.
    """
    raise NotImplementedError(fraction, seed)


def load_splits(run_spec: RunSpec) -> tuple[list[TokenItem], list[TokenItem]]:
    """Training and validation items of a run whose `training` has no "auto" left.

    Raises:
        RunError: kind `user`; a bad row in a file, or nothing left to train on.
    """
    raise NotImplementedError(run_spec, RunError, user_error)
