"""`dpo report`: what a file holds, by all of its rows, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import typer
from rich.console import Console

from cli.answers import answer
from cli.client import connected
from cli.columns import columns_of
from cli.errors import CommandFailed
from cli.tables import show
from cli.words import command
from dpo_core.data.file_report import FileReport, Statistics, TokenReport
from dpo_core.data.problems import lines_in_words, problem_in_words, rows_in_words
from dpo_core.prepare_report import Lengths

COLUMNS = ("", "mean", "median", "90 %", "99 %", "longest")


def report(file_id: str, model: str | None, columns: Sequence[str], console: Console) -> None:
    """Prints the file's report, with what `model` makes of it. Raises CommandFailed where there is none."""
    if Path(file_id).exists():
        wanted = f"`{command('files', 'add', file_id)}` prints one, `{command('validate', file_id)}` needs none"
        raise CommandFailed(f"{file_id} is a file here; a report is of an uploaded one, by its id: {wanted}")
    params: dict[str, object] = {"model": model} if model else {}
    if columns:
        params["columns"] = json.dumps(columns_of(columns))
    path = f"/files/{quote(file_id, safe='')}/report"
    with connected() as client:
        found = answer(client, path, console, params=params)
    read = FileReport.model_validate(found["report"])
    for line in in_words(read):
        typer.echo(line)
    if read.statistics is not None:
        show_statistics(read.statistics)
    if found["tokens"] is not None:
        show_tokens(TokenReport.model_validate(found["tokens"]))


def in_words(report: FileReport) -> Iterator[str]:
    bad = report.rows - report.pairs - report.examples
    if report.format is not None:
        shapes = [f"{it.title}: {rows_in_words(it.count)}" for it in report.shapes]
        yield "; ".join([report.format, *shapes])
    yield f"{rows_in_words(report.rows)}: {report.pairs:,} pairs, {report.examples:,} supervised examples, {bad:,} bad"
    if report.damage is not None:
        yield f"the file can't be used: {report.damage.message} Reading ended at line {report.damage.line}."
    yield from rows_in_common(report)


def rows_in_common(report: FileReport | TokenReport) -> Iterator[str]:
    for problem in report.problems:
        yield problem_in_words(problem.code, problem.message, problem.count, problem.lines)
    for found in report.findings:
        yield f"{rows_in_words(found.count)} ({lines_in_words(found.lines, found.count)}): {found.message}"


def show_statistics(statistics: Statistics) -> None:
    measured = {
        "turns": statistics.turns,
        "characters of the prompt": statistics.prompt_characters,
        "characters of the chosen answer": statistics.chosen_characters,
        "characters of the rejected answer": statistics.rejected_characters,
        "characters of the completion": statistics.completion_characters,
    }
    show(COLUMNS, [_row(name, it) for name, it in measured.items() if it])
    typer.echo(
        f"{statistics.prompts:,} different prompts; rows with a system turn {statistics.system_turns:,}, "
        f"tools {statistics.tools:,}, thinking text {statistics.reasoning:,}"
    )
    if (bias := statistics.length_bias) is not None:
        typer.echo(
            f"the longer answer is the chosen one in {bias.share:.1%} of {bias.pairs:,} pairs "
            f"(95 % interval {bias.low:.1%} to {bias.high:.1%})"
        )


def show_tokens(report: TokenReport) -> None:
    show(COLUMNS, [_row("tokens of a row", report.lengths)])
    typer.echo(
        f"max_length would be {report.max_length:,} ({report.max_length_reason}); "
        f"longer than that: {rows_in_words(report.longer)} of {report.rows:,}"
    )
    for line in rows_in_common(report):
        typer.echo(line)


def _row(name: str, lengths: Lengths) -> tuple[str, ...]:
    return name, f"{lengths.mean:,.1f}", *(f"{it:,}" for it in (lengths.p50, lengths.p90, lengths.p99, lengths.longest))
