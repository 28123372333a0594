"""Files to token items: what `prepare` measures and the trainer trains on, by the same functions.

Imports no torch. Order is the file's order; shuffling is the trainer's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dpo_core.errors import user_error
from dpo_core.formats import read_rows
from dpo_core.records import Example, Finding, Pair, RowProblem, Text, TokenExample, TokenItem, TokenPair
from dpo_core.render import Renderer
from dpo_core.spec import Method, RunSpec, TrainingSpec
from dpo_core.template import TemplateRefusal
from dpo_core.truncate import fit_example, fit_pair

__all__ = ["Dataset", "TokenExample", "TokenItem", "TokenPair", "load", "load_splits", "prompt_key", "split"]

PROBLEMS_SHOWN = 3
"""How many bad rows an error message names."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One file, read, rendered and cut to length. `items` are all TokenPair (dpo) or all TokenExample (supervised)."""

    items: list[TokenItem] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    """`prompt_key` of each item."""

    dropped_lines: list[int] = field(default_factory=list)
    """Rows that are too long even with the shortest prompt."""

    truncated_lines: list[int] = field(default_factory=list)
    """Rows whose prompt was shortened."""

    problems: list[RowProblem] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of the file, good and bad."""
        return len(self.items) + len(self.dropped_lines) + len(self.problems)


def load(path: Path, method: Method, renderer: Renderer, max_length: int | None) -> Dataset:
    """Reads every row of `path`; None for `max_length` keeps whole sequences.

    Raises:
        RunError: the rows need a chat template that the model doesn't have, or its template fails on a row.
    """
    data = Dataset()
    for row in read_rows(path, method):
        if isinstance(row, RowProblem):
            data.problems.append(row)
            continue
        try:
            item, truncated = _fit(renderer, row, max_length)
        except TemplateRefusal as refusal:
            message = f"The row can't be rendered: {refusal}. Correct or remove the row."
            data.problems.append(RowProblem(row.line, "not_rendered", None, message))
            continue
        if item is None:
            data.dropped_lines.append(row.line)
            continue
        if truncated:
            data.truncated_lines.append(row.line)
        data.items.append(item)
        data.keys.append(prompt_key(row.prompt))
    data.findings.extend(renderer.take_findings())
    return data


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
    choice depends on prompts and seed, not on the order of the file. The last prompt stays in training.
    """
    counts = Counter(data.keys)
    wanted = round(fraction * len(data.items))
    held_out: set[str] = set()
    taken = 0
    for key in sorted(counts, key=lambda key: hashlib.blake2b(f"{seed} {key}".encode()).digest())[:-1]:
        if taken >= wanted:
            break
        held_out.add(key)
        taken += counts[key]
    keyed = list(zip(data.items, data.keys, strict=True))
    return [item for item, key in keyed if key not in held_out], [item for item, key in keyed if key in held_out]


def load_splits(run_spec: RunSpec) -> tuple[list[TokenItem], list[TokenItem]]:
    """Training and validation items of a run whose `training` has no "auto" left.

    Raises:
        RunError: kind `user`; a bad row in a file, or nothing left to train on.
    """
    training = run_spec.training
    if training.max_length == "auto":
        raise ValueError("the training spec must be resolved before its data is loaded")
    renderer = Renderer.for_run(run_spec.model, training)
    data = load(run_spec.training_file, training.method, renderer, training.max_length)
    refuse_problems(data, "training")
    validation = None
    if run_spec.validation_file is not None:
        validation = load(run_spec.validation_file, training.method, renderer, training.max_length)
        refuse_problems(validation, "validation")
    return divide(data, validation, training)


def divide(
    data: Dataset, validation: Dataset | None, training: TrainingSpec
) -> tuple[list[TokenItem], list[TokenItem]]:
    """Training and validation items, by a resolved spec; what is held out only counts without a validation file.

    Raises:
        RunError: kind `user`; nothing is left to train on.
    """
    if not data.items:
        message = (
            f"All {data.rows} rows of the training file are longer than max_length ({training.max_length} tokens) "
            "even with the shortest prompt. Raise `training.max_length` or shorten the answers."
        )
        raise user_error("no_training_rows", message, param="training.max_length")
    if validation is not None:
        return data.items, validation.items
    if training.validation_fraction == "auto":
        raise ValueError("the training spec must be resolved before its data is divided")
    return split(data, training.validation_fraction, training.seed)


def refuse_problems(data: Dataset, name: str) -> None:
    """Raises RunError, kind `user`, if the `name` (training or validation) file has a bad row."""
    if not data.problems:
        return
    first = data.problems[0]
    if first.code == "empty_file":
        message = f"The {name} file is empty. {first.message}"
    else:
        shown = "; ".join(f"line {problem.line}: {problem.message}" for problem in data.problems[:PROBLEMS_SHOWN])
        more = len(data.problems) - PROBLEMS_SHOWN
        rows = (
            f"{len(data.problems)} of {data.rows} rows are" if len(data.problems) > 1 else f"1 of {data.rows} rows is"
        )
        message = f"{rows} bad in the {name} file; {shown}" + (f" (and {more} more)" if more > 0 else "")
    raise user_error(f"invalid_{name}_file", message, param=f"{name}_file", line=first.line)
