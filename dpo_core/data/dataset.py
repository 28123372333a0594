"""Files to token items: what `prepare` measures and the trainer trains on, by the same functions.

Imports no torch. Order is the file's order; shuffling is the trainer's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from dpo_core.data.formats import read_rows
from dpo_core.data.options import ReadOptions
from dpo_core.data.problems import Finding, Tally, problem_in_words, rows_in_words, share_for
from dpo_core.data.records import Example, FileProblem, Pair, RowProblem, Text, TokenExample, TokenItem, TokenPair
from dpo_core.data.render import Renderer
from dpo_core.data.repeats import Repeats
from dpo_core.data.template import TemplateRefusal
from dpo_core.data.truncate import fit_example, fit_pair, least_length
from dpo_core.errors import user_error
from dpo_core.spec import RunSpec, TrainingSpec

__all__ = ["Dataset", "TokenExample", "TokenItem", "TokenPair", "load", "load_splits", "prompt_key", "split"]

FileName = Literal["training", "validation"]


@dataclass(slots=True)
class Dataset:
    """One file, read, rendered and cut to length. `items` are all TokenPair (dpo) or all TokenExample (supervised)."""

    items: list[TokenItem] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    """`prompt_key` of each item."""

    dropped_lines: list[int] = field(default_factory=list)
    """Rows that are too long even with the shortest prompt."""

    least_dropped: tuple[int, int] | None = None
    """The dropped row that is the shortest with its shortest prompt: its tokens, its line."""

    truncated_lines: list[int] = field(default_factory=list)
    """Rows whose prompt was shortened."""

    problems: Tally = field(default_factory=Tally)
    """Bad rows, by ProblemCode; none of them is in `items`."""

    damage: FileProblem | None = None
    """What ended the reading before the file's end."""

    findings: list[Finding] = field(default_factory=list)
    """Rows that are trained on, but that the user should know of."""

    @property
    def rows(self) -> int:
        """Rows of the file, good and bad."""
        return len(self.items) + len(self.dropped_lines) + self.problems.count


def load(path: Path, options: ReadOptions, renderer: Renderer, max_length: int | None) -> Dataset:
    """Reads every row of `path`; None for `max_length` keeps whole sequences.

    Raises:
        RunError: the rows need a chat template that the model doesn't have.
        OSError: the file can't be read.
    """
    data, repeats, notes = Dataset(), Repeats(), Tally()
    for row in read_rows(path, options):
        if isinstance(row, FileProblem):
            data.damage = row
        elif isinstance(row, RowProblem):
            data.problems.add(row.code, row.line, row.message)
        elif _take(data, row, renderer, max_length):
            for code, message in notes_on(row, repeats):
                notes.add(code, row.line, message)
    data.findings = notes.findings() + renderer.take_findings()
    return data


def _take(data: Dataset, row: Pair | Example, renderer: Renderer, max_length: int | None) -> bool:
    """Puts a row where it belongs; whether that is among the items."""
    try:
        item, truncated = _fit(renderer, row, max_length)
    except TemplateRefusal as refusal:
        message = f"The row can't be rendered: {refusal}. Correct or remove the row."
        data.problems.add("not_rendered", row.line, message)
        return False
    if isinstance(item, TokenPair) and item.chosen == item.rejected:
        message = (
            "The two answers are different texts, but the same tokens: the chat template or the tokenizer takes their "
            "difference away. Correct or remove the row, or give another `chat_template`."
        )
        data.problems.add("equal_tokens", row.line, message)
        return False
    if item is None:
        data.dropped_lines.append(row.line)
        least = (least_length(renderer, row), row.line)
        data.least_dropped = min(data.least_dropped or least, least)
        return False
    if truncated:
        data.truncated_lines.append(row.line)
    data.items.append(item)
    data.keys.append(prompt_key(row.prompt))
    return True


def notes_on(row: Pair | Example, repeats: Repeats) -> list[tuple[str, str]]:
    """What the user should know of a row that is trained on: codes and messages."""
    repeated = repeats.look(row)
    found = [repeated] if repeated is not None else []
    roles = [] if isinstance(row.prompt, str) else [turn.role for turn in row.prompt]
    if any(role == after and role in ("user", "assistant") for role, after in pairwise(roles)):
        message = "Two turns of one role follow each other in the prompt; the chat template takes them, so they stay."
        found.append(("repeated_role", message))
    return found


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
        RunError: kind `user`; too many bad rows in a file, or nothing left to train on.
        OSError: a file can't be read.
    """
    training = run_spec.training
    if training.max_length == "auto":
        raise ValueError("the training spec must be resolved before its data is loaded")
    renderer = Renderer.for_run(run_spec.model, training)
    data = load_tolerable(run_spec.training_file, "training", training, renderer, training.max_length)
    validation = None
    if run_spec.validation_file is not None:
        validation = load_tolerable(run_spec.validation_file, "validation", training, renderer, training.max_length)
    return divide(data, validation, training)


def load_tolerable(
    path: Path, name: FileName, training: TrainingSpec, renderer: Renderer, max_length: int | None
) -> Dataset:
    """`load`, with at most the share of bad rows that `training.skip_bad_rows` allows.

    Raises:
        RunError: kind `user`; there are more, or the file as a whole is no use.
        OSError: the file can't be read.
    """
    data = load(path, ReadOptions.of(training), renderer, max_length)
    refuse_problems(data, name, training.skip_bad_rows)
    return data


def divide(
    data: Dataset, validation: Dataset | None, training: TrainingSpec
) -> tuple[list[TokenItem], list[TokenItem]]:
    """Training and validation items, by a resolved spec; what is held out only counts without a validation file.

    Raises:
        RunError: kind `user`; nothing is left to train on, or of the validation file.
    """
    _refuse_nothing_left(data, "training", training)
    if validation is not None:
        _refuse_nothing_left(validation, "validation", training)
        return data.items, validation.items
    if training.validation_fraction == "auto":
        raise ValueError("the training spec must be resolved before its data is divided")
    return split(data, training.validation_fraction, training.seed)


def _refuse_nothing_left(data: Dataset, name: FileName, training: TrainingSpec) -> None:
    if data.items:
        return
    bad = f" {data.problems.count} more are bad." if data.problems.count else ""
    if data.least_dropped is None:
        raise ValueError("a file with no row that fits was not refused for its bad rows")
    tokens, line = data.least_dropped
    message = (
        f"Nothing is left of the {name} file: {len(data.dropped_lines)} of its {data.rows} rows are longer than "
        f"max_length ({training.max_length} tokens) even with the shortest prompt.{bad} The shortest, line {line}, "
        f"needs {tokens} tokens: raise `training.max_length` to at least that, or shorten the answers."
    )
    raise user_error(f"no_{name}_rows", message, param="training.max_length")


def refuse_problems(data: Dataset, name: FileName, tolerated: float) -> None:
    """Raises RunError, kind `user`, if more than the share `tolerated` of a file's rows is bad, or all of them are."""
    code, param, bad = f"invalid_{name}_file", f"{name}_file", data.problems.count
    if data.damage is not None:
        where = "" if data.damage.code == "empty_file" else f" Reading ended at line {data.damage.line}."
        message = f"The {name} file can't be used. {data.damage.message}{where}"
        raise user_error(code, message, param=param, line=data.damage.line)
    if not bad or (bad < data.rows and bad <= tolerated * data.rows + 1e-9):
        return
    allowed = f", more than the share of {tolerated:g} that `training.skip_bad_rows` allows" if tolerated else ""
    lines = [f"{bad:,} of {rows_in_words(data.rows)} {'is' if bad == 1 else 'are'} bad in the {name} file{allowed}."]
    lines += [problem_in_words(it.code, it.message, it.count, it.lines) for it in data.problems.findings()]
    if bad < data.rows:
        share = share_for(bad, data.rows)
        lines.append(f"To train without them, set `training.skip_bad_rows` to {share:g}: the share that may be bad.")
    raise user_error(code, "\n".join(lines), param=param, line=data.problems.findings()[0].lines[0])
