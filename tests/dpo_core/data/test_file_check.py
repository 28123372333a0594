"""Reports on files of every kind: made ones with each finding, and the real ones with the defects that are known."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from dpo_core.data.file_check import check_file
from dpo_core.data.file_report import FileReport
from dpo_core.data.records import Shape
from tests.makers import real_data, write_rows

PAIR = {"prompt": "What is 1+1?", "chosen": "2", "rejected": "3"}
EXAMPLE = {"prompt": "What is 1+1?", "completion": "2"}
USER = {"role": "user", "content": "q"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("good", "bad"))


def lines_by_code(report: FileReport) -> dict[str, list[int]]:
    return {found.code: found.lines for found in (*report.problems, *report.findings)}


def test_rows_of_both_methods_in_one_file(tmp_path: Path) -> None:
    report = check_file(
        write_rows(tmp_path / "a.jsonl", [PAIR, EXAMPLE, EXAMPLE | {"prompt": "x"}, PAIR | {"prompt": "y"}])
    )
    assert (report.rows, report.pairs, report.examples, report.problems) == (4, 2, 2, [])
    assert report.statistics is not None
    assert report.statistics.prompts == 3


def test_problems_and_findings_by_line(tmp_path: Path) -> None:
    rows = [PAIR, PAIR | {"prompt": "x"}, PAIR, {**PAIR, "chosen": "3", "rejected": "2"}, PAIR | {"chosen": " "}, [1]]
    report = check_file(write_rows(tmp_path / "a.jsonl", rows))
    assert (report.rows, report.pairs) == (6, 4)
    assert lines_by_code(report) == {
        "empty_answer": [5],
        "not_an_object": [6],
        "duplicate_row": [3],
        "opposite_labels": [4],
        "repeated_prompt": [3, 4],
    }
    assert all(problem.title and problem.count == 1 for problem in report.problems)


def test_rows_of_one_line_count_as_on_lines_of_their_own(tmp_path: Path) -> None:
    rows = [PAIR, PAIR, {**PAIR, "chosen": "3", "rejected": "2"}, *[PAIR | {"chosen": " "}] * 50]
    (tmp_path / "compact.json").write_text(json.dumps(rows))
    (tmp_path / "indented.json").write_text(json.dumps(rows, indent=1))
    compact, indented = (check_file(tmp_path / f"{name}.json") for name in ("compact", "indented"))
    assert (compact.rows, compact.pairs, compact.statistics) == (53, 3, indented.statistics)
    counts = {found.code: found.count for found in (*compact.problems, *compact.findings)}
    assert counts == {found.code: found.count for found in (*indented.problems, *indented.findings)}
    assert counts == {"empty_answer": 50, "duplicate_row": 1, "opposite_labels": 1, "repeated_prompt": 2}


def test_a_file_without_a_good_row_has_no_statistics(tmp_path: Path) -> None:
    report = check_file(write_rows(tmp_path / "a.jsonl", [{"a": 1}]))
    assert (report.rows, report.pairs, report.statistics, report.damage) == (1, 0, None, None)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    damage = check_file(tmp_path / "empty.jsonl").damage
    assert damage is not None and damage.code == "empty_file"


def test_the_known_defects_of_a_real_file() -> None:
    report = check_file(real_data("hh-rlhf/harmless-base_test.jsonl.gz"))
    found = lines_by_code(report)
    assert report.rows == 2312
    assert found["empty_answer"] == [87, 517, 926, 1104]
    assert found["prompts_differ"] == [1255, 1689, 1951, 1953, 2037]
    assert found["repeated_role"] == [668, 764, 1320, 1850], "five more are among the bad rows"
    assert report.statistics is not None
    assert report.statistics.turns.longest == 36
    bias = report.statistics.length_bias
    assert bias is not None and bias.low < bias.share < bias.high


@pytest.mark.parametrize(
    ("name", "pairs", "examples", "kind", "shape"),
    [
        ("orca/validation.jsonl", 284, 0, "JSONL", "openai_preference"),
        ("piqa/piqa_validation_pairs.jsonl", 1838, 0, "JSONL", "prompt_answers"),
        ("llama-factory/dpo_en_demo.json", 300, 0, "JSON array", "conversation_answers"),
        ("medicalgpt/dpo_zh_500.jsonl", 500, 0, "JSONL", "conversation_answers"),
        ("gsm8k/train.jsonl", 0, 7473, "JSONL", "prompt_completion"),
    ],
)
def test_real_files_are_recognised(name: str, pairs: int, examples: int, kind: str, shape: str) -> None:
    report = check_file(real_data(name))
    assert (report.pairs, report.examples, report.problems) == (pairs, examples, [])
    assert (report.format, [(it.shape, it.count) for it in report.shapes]) == (kind, [(shape, pairs + examples)])


SHAPES: list[tuple[Shape, dict[str, object]]] = [
    ("openai_preference", {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}),
    ("prompt_answers", PAIR),
    ("question_answers", {"instruction": "q", "input": "x", "response_chosen": "a", "response_rejected": "b"}),
    ("conversation_answers", {"conversations": [USER], "chosen": GOOD, "rejected": BAD}),
    ("two_conversations", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    ("two_transcripts", {name: f"\n\nHuman: q\n\nAssistant: {name}" for name in ("chosen", "rejected")}),
    ("scored_answers", {"prompt": "q", "answers": ["a", "b"], "scores": [1, 2]}),
    ("conversation", {"messages": [USER, GOOD]}),
    ("prompt_completion", EXAMPLE),
]


def test_every_shape_is_told_from_the_others(tmp_path: Path) -> None:
    assert [shape for shape, _ in SHAPES] == list(get_args(Shape))
    rows = [row for place, (_, row) in enumerate(SHAPES) for _ in range(len(SHAPES) - place)]
    report = check_file(write_rows(tmp_path / "a.jsonl", [*rows, {"a": 1}]))
    assert [(it.shape, it.count) for it in report.shapes] == [
        (shape, len(SHAPES) - place) for place, (shape, _) in enumerate(SHAPES)
    ]
    assert all(it.title for it in report.shapes)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (json.dumps(PAIR).encode(), "JSONL"),
        (b"\xef\xbb\xbf" + json.dumps([PAIR]).encode(), "JSON array"),
        (b"prompt;chosen;rejected\nq;a;b\n", "CSV"),
        (gzip.compress(b"prompt,chosen,rejected\nq,a,b\n"), "CSV, gzip"),
        (zstandard.compress(json.dumps(PAIR).encode()), "JSONL, zstd"),
        (gzip.compress(json.dumps(PAIR).encode())[:20], None),
        (b"%PDF-1.7", None),
    ],
)
def test_the_kind_of_a_file_is_told_by_its_content(tmp_path: Path, content: bytes, kind: str | None) -> None:
    (tmp_path / "file").write_bytes(content)
    report = check_file(tmp_path / "file")
    assert (report.format, report.damage is None) == (kind, kind is not None)


def test_parquet_is_told_by_its_content(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([PAIR]), tmp_path / "file")
    report = check_file(tmp_path / "file")
    assert (report.format, report.pairs) == ("Parquet", 1)


def test_several_processes_report_the_same(tmp_path: Path) -> None:
    rows: list[object] = [PAIR | {"prompt": f"{n % 90}", "ignored": "x" * 60_000} for n in range(100)]
    file = write_rows(tmp_path / "a.jsonl", [*rows, {}])
    assert check_file(file, processes=2) == check_file(file, processes=1)
