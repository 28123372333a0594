"""What a run's token tables say of its files, in the form of its report."""

from __future__ import annotations

from collections.abc import Mapping

from dpo_core.data.facts import FileFacts
from dpo_core.data.parts import Part
from dpo_core.data.problems import TITLES, Finding
from dpo_core.data.splits import leaks
from dpo_core.data.token_table import TokenTable
from dpo_core.prepare_report import Lengths, Report, ReportFile, ReportFinding, ReportProblem
from dpo_core.spec import RunSpec, WeighedFile


def report_of(
    tables: Mapping[Part, TokenTable], run: RunSpec, warnings: list[str], *, sides: tuple[int, int]
) -> Report:
    """`sides`: items to train on and to validate with."""
    table, whole = tables["training"], FileFacts()
    for file in table.facts.files:
        whole.merge(file)
    dropped = whole.cut("dropped")
    problems, findings = list[ReportProblem](), list[ReportFinding]()
    for part, each in tables.items():
        names: list[str | None] = [file.id for file in run.training_files] if part == "training" else []
        for name, file in zip(names or [None], each.facts.files, strict=True):
            problems += [_problem(part, name, found) for found in file.problems.findings()]
            if part == "training":
                findings += [_finding(part, name, found) for found in file.findings.findings()]
    if "validation" in tables:
        findings += [_finding("validation", None, found) for found in leaks(table, tables["validation"])]
    return Report(
        rows=whole.rows,
        pairs=len(table),
        bad=whole.problems.count,
        problems=problems,
        train_items=sides[0],
        validation_items=sides[1],
        dropped_lines=dropped.lines,
        dropped=dropped.count,
        truncated=whole.cut("truncated").count,
        lengths=Lengths.of(table.facts.lengths),
        files=[_file(file, facts) for file, facts in zip(run.training_files, table.facts.files, strict=False)],
        findings=findings,
        warnings=warnings,
    )


def _problem(part: Part, name: str | None, found: Finding) -> ReportProblem:
    title = TITLES[found.code]
    return ReportProblem(
        file=part, name=name, code=found.code, title=title, message=found.message, count=found.count, lines=found.lines
    )


def _finding(part: Part, name: str | None, found: Finding) -> ReportFinding:
    return ReportFinding(
        file=part, name=name, code=found.code, message=found.message, count=found.count, lines=found.lines
    )


def _file(file: WeighedFile, facts: FileFacts) -> ReportFile:
    return ReportFile(
        name=file.id,
        weight=file.weight,
        rows=facts.rows,
        pairs=facts.pairs,
        bad=facts.problems.count,
        dropped=facts.cut("dropped").count,
        truncated=facts.cut("truncated").count,
    )
