"""Tells the user, as events, what `dpo_core.prepare` found in the data and the spec."""

from __future__ import annotations

from collections.abc import Iterator

from dpo_core.data.problems import lines_in_words, problem_in_words, rows_in_words
from dpo_core.prepare_report import Prepared, Report, ReportProblem
from dpo_core.run_directory import Event, RunDirectory

IN_COMMON = {
    "duplicate_row": ("repeats an earlier row", "repeat an earlier row"),
    "opposite_labels": ("contradicts an earlier row", "contradict an earlier row"),
}
"""What one row or several do, for findings whose message is about the first of the rows only."""


def announce(directory: RunDirectory, prepared: Prepared, tables_found: int = 0) -> None:
    """Appends an event for what was read, and one for everything odd about it.

    `tables_found`: how many parts of the data were rendered and tokenized before.
    """
    for event in _events(prepared, tables_found):
        directory.append_event(event)


def warnings(prepared: Prepared) -> list[str]:
    """What the user would be warned of."""
    return [event.message for event in _events(prepared, 0) if event.level == "warn"]


def _events(prepared: Prepared, tables_found: int) -> Iterator[Event]:
    report = prepared.report
    if tables_found:
        message = "The rows were rendered and tokenized before, for the same files and model, and are used as they are."
        yield Event(code="tokens_found", message=message, data={"tables": tables_found})
    message = (
        f"{report.rows} rows checked: {report.train_items} to train on, {report.validation_items} to validate with, "
        f"{prepared.total_steps} steps."
    )
    counts = {"rows", "pairs", "bad", "train_items", "validation_items", "dropped", "truncated"}
    yield Event(code="data_prepared", message=message, data=report.model_dump(include=counts))
    yield from _rows_left_out(prepared)
    fraction = prepared.values["validation_fraction"]
    if fraction.source == "auto" and not report.validation_items:
        message = (
            f"Nothing is held out to validate with: {fraction.reason}. Give a validation file, or "
            "`training.validation_fraction`."
        )
        yield Event(level="warn", code="nothing_held_out", message=message)
    if report.truncated:
        message = f"Prompts that lost their oldest turns to fit in max_length: {report.truncated}."
        yield Event(code="prompts_truncated", message=message)
    yield from _oddities(report)


def _rows_left_out(prepared: Prepared) -> Iterator[Event]:
    report = prepared.report
    files = dict.fromkeys((problem.file, problem.name) for problem in report.problems)
    for file, name in files:
        yield _bad_rows(file, name, [it for it in report.problems if (it.file, it.name) == (file, name)])
    if report.dropped:
        where = f" ({lines_in_words(report.dropped_lines, report.dropped)})" if not report.files else ""
        message = (
            f"Left out, as longer than max_length {prepared.training.max_length}: {rows_in_words(report.dropped)}"
            f"{where}. The longest of all rows has "
            f"{report.lengths.longest} tokens: with max_length at that none would be left out."
        )
        yield Event(level="warn", code="rows_dropped", message=message)


def _bad_rows(file: str, name: str | None, problems: list[ReportProblem]) -> Event:
    count = sum(problem.count for problem in problems)
    whose = _named(f"the {file} file", name)
    lines = [f"Left out of {whose}, as `training.skip_bad_rows` allows: {rows_in_words(count)}."]
    lines += [problem_in_words(it.code, it.message, it.count, it.lines) for it in problems]
    found = [problem.model_dump(include={"code", "count", "lines"}) for problem in problems]
    data = {"file": file, "name": name, "count": count, "problems": found}
    return Event(level="warn", code="bad_rows_skipped", message="\n".join(lines), data=data)


def _named(file: str, name: str | None) -> str:
    return file if name is None else f"{file} {name}"


def _oddities(report: Report) -> Iterator[Event]:
    for found in report.findings:
        rows, lines = rows_in_words(found.count), lines_in_words(found.lines, found.count)
        where = f"{lines} of {found.name}" if found.name else lines
        if found.file == "validation":
            where = f"{lines} of the validation file"
        if found.code in IN_COMMON:
            message = f"{rows} {IN_COMMON[found.code][found.count > 1]} ({where}). {found.message}"
        else:
            message = f"{rows} ({where}): {found.message}"
        data = {"file": found.file, "name": found.name, "count": found.count, "lines": found.lines}
        yield Event(level="warn", code=found.code, message=message, data=data)
    for warning in report.warnings:
        yield Event(level="warn", code="unusual_value", message=warning)
