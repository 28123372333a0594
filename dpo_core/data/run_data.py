"""The data of one run: its tables, found in its folder or made there; which items train, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dpo_core.data.dataset import Limit, load
from dpo_core.data.facts import FileFacts
from dpo_core.data.options import ReadOptions
from dpo_core.data.parts import Part, table_path
from dpo_core.data.problems import problem_in_words, rows_in_words, share_for
from dpo_core.data.render import Renderer
from dpo_core.data.splits import Places, split, weigh
from dpo_core.data.token_table import Selection, TokenTable
from dpo_core.errors import user_error
from dpo_core.spec import RunSpec, TrainingSpec, WeighedFile


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one part of a run's data."""

    part: Part
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def training(cls, run: RunSpec) -> Source:
        files = run.training_files or [WeighedFile(id="", path=run.training_file)]
        paths, names, weights = zip(*((file.path, file.id, file.weight) for file in files), strict=True)
        return cls("training", paths, names, weights)

    @classmethod
    def validation(cls, file: Path) -> Source:
        return cls("validation", (file,), ("",), (1.0,))

    def called(self, number: int) -> str:
        """A file in words."""
        return f"the {self.part} file {self.names[number]}".rstrip()


def open_or_load(run: RunSpec, source: Source, limit: Limit, folder: Path) -> TokenTable:
    """The table of one part of the data in `folder`; it is made where it isn't there, or is damaged, or cut elsewhere.

    Raises:
        RunError: too many rows of a file are bad, or it can't be rendered.
        OSError: a file can't be read, or the disk is full.
    """
    path, training = table_path(folder, source.part), run.training
    table = _found(path, limit)
    if table is None:
        renderer = partial(Renderer.for_run, run.model, training, run.today)
        table = load(source.paths, ReadOptions.of(training), renderer, limit, path, names=source.names)
    for number, facts in enumerate(table.facts.files):
        refuse_problems(facts, source.part, source.called(number), training.skip_bad_rows)
    return table


def _found(path: Path, limit: Limit) -> TokenTable | None:
    """The table at `path`, if there is a whole one that was cut to `limit`; any other is removed."""
    if not path.exists():
        return None
    try:
        table = TokenTable(path)
    except ValueError:
        path.unlink()
        return None
    if table.facts.max_length == (limit(table.facts.lengths) if callable(limit) else limit):
        return table
    path.unlink()
    return None


def make_tables(run: RunSpec, folder: Path) -> None:
    """All tables of a run whose spec has no "auto" left. Raises what `open_or_load` raises."""
    if run.training.max_length == "auto":
        raise ValueError("the training spec must be resolved before its data is loaded")
    open_or_load(run, Source.training(run), run.training.max_length, folder)
    if run.validation_file is not None:
        open_or_load(run, Source.validation(run.validation_file), run.training.max_length, folder)


def load_splits(run: RunSpec, folder: Path) -> tuple[Selection, Selection]:
    """Training and validation items of a run whose spec has no "auto" left, from the tables in `folder`.

    Raises:
        RunError: kind `user`; too many bad rows in a file, or nothing left to train on.
        OSError: a file can't be read.
    """
    make_tables(run, folder)
    training = TokenTable(table_path(folder, "training"))
    path = table_path(folder, "validation")
    return divide(run, training, TokenTable(path) if run.validation_file is not None else None)


def divide(run: RunSpec, table: TokenTable, validation: TokenTable | None) -> tuple[Selection, Selection]:
    """Training and validation items, by a resolved spec; what is held out only counts without a validation file.

    Raises:
        RunError: kind `user`; nothing is left to train on, or of the validation file.
    """
    training, source = run.training, Source.training(run)
    if training.validation_fraction == "auto":
        raise ValueError("the training spec must be resolved before its data is divided")
    refuse_nothing_left(table, "training", training)
    if validation is not None:
        refuse_nothing_left(validation, "validation", training)
        fraction = 0.0
    else:
        fraction = training.validation_fraction
    kept, held_out = split(table, fraction, training.seed)
    trained = Selection(table, _weighed(table, kept, source.weights, training.seed))
    return trained, Selection(table, held_out) if validation is None else whole(validation)


def _weighed(table: TokenTable, kept: Places, weights: Sequence[float], seed: int) -> Places:
    places = weigh(table, kept, weights, seed)
    if not len(places):
        message = "The weights in `training_files` leave no row to train on. Raise one of them."
        raise user_error("no_training_rows", message, param="training_files")
    return places


def whole(table: TokenTable) -> Selection:
    """Every item once."""
    return Selection(table, np.arange(len(table)))


def refuse_nothing_left(table: TokenTable, part: Part, training: TrainingSpec) -> None:
    """Raises RunError, kind `user`, if not one row is short enough."""
    if len(table):
        return
    facts = FileFacts()
    for file in table.facts.files:
        facts.merge(file)
    bad = f" {facts.problems.count} more are bad." if facts.problems.count else ""
    if facts.least_dropped is None:
        raise ValueError("a file with no row that fits was not refused for its bad rows")
    tokens, line = facts.least_dropped
    files, their = (f"{part} file", "its") if len(table.facts.files) == 1 else (f"{part} files", "their")
    message = (
        f"Nothing is left of the {files}: {facts.cut('dropped').count} of {their} {facts.rows} rows are longer than "
        f"max_length ({training.max_length} tokens) even with the shortest prompt.{bad} The shortest, line {line}, "
        f"needs {tokens} tokens: raise `training.max_length` to at least that, or shorten the answers."
    )
    raise user_error(f"no_{part}_rows", message, param="training.max_length")


def refuse_problems(facts: FileFacts, part: Part, file: str, tolerated: float) -> None:
    """Raises RunError, kind `user`, if more than the share `tolerated` of a file's rows is bad, or all of them are."""
    code, param, bad = f"invalid_{part}_file", f"{part}_file", facts.problems.count
    if facts.damage is not None:
        where = "" if facts.damage.code == "empty_file" else f" Reading ended at line {facts.damage.line}."
        message = f"{file[0].upper()}{file[1:]} can't be used. {facts.damage.message}{where}"
        raise user_error(code, message, param=param, line=facts.damage.line)
    if not bad or (bad < facts.rows and bad <= tolerated * facts.rows + 1e-9):
        return
    allowed = f", more than the share of {tolerated:g} that `training.skip_bad_rows` allows" if tolerated else ""
    lines = [f"{bad:,} of {rows_in_words(facts.rows)} {'is' if bad == 1 else 'are'} bad in {file}{allowed}."]
    lines += [problem_in_words(it.code, it.message, it.count, it.lines) for it in facts.problems.findings()]
    if bad < facts.rows:
        share = share_for(bad, facts.rows)
        way = f"set `training.skip_bad_rows` to {share:g} (`dpo submit --skip-bad-rows {share:g}`)"
        lines.append(f"To train without them, {way}: the share that may be bad.")
    raise user_error(code, "\n".join(lines), param=param, line=facts.problems.findings()[0].lines[0])
