"""JSON arrays, CSV and Parquet, plain and packed: where rows begin, and what is wrong with a file that is damaged."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from dpo_core.data import json_array, parquet_program, parquet_rows, unpack
from dpo_core.data.csv_rows import unfold
from dpo_core.data.formats import MAX_ROW_BYTES, RawRow, raw_rows, read_rows
from dpo_core.data.options import ReadOptions
from dpo_core.data.preference import BETTER, WORSE
from dpo_core.data.prompts import QUESTIONS
from dpo_core.data.records import Example, FileProblem, Message, Pair, RowProblem
from dpo_core.data.supervised import COMPLETIONS
from dpo_core.errors import RunError

Record = Pair | Example | RowProblem | FileProblem
ROW = b'{"prompt": "q", "chosen": "good", "rejected": "bad"}'
HEADER = b"prompt,chosen,rejected\n"


def read(folder: Path, content: bytes, options: ReadOptions | None = None) -> list[Record]:
    path = folder / "file"
    path.write_bytes(content)
    return list(read_rows(path, options or ReadOptions("dpo")))


def lines(records: list[Record]) -> list[tuple[type[Record], int]]:
    return [(type(record), record.line) for record in records]


def last_problem(records: list[Record]) -> FileProblem:
    assert isinstance(records[-1], FileProblem)
    return records[-1]


def test_elements_of_an_array_have_the_line_they_begin_in(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf\n [" + ROW + b"\r\n\n,\n  " + ROW.replace(b", ", b",\n") + b" , " + ROW + b"\n]\n\n"
    assert lines(read(tmp_path, content)) == [(Pair, 2), (Pair, 5), (Pair, 7)]
    (empty,) = read(tmp_path, b"[ \n ]")
    assert isinstance(empty, FileProblem)
    assert empty.code == "empty_file"


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_elements_are_the_same_however_the_file_comes_in(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = ["a", r"\"]},{[", "\\", "", {"b": ["]", {"c": '"'}]}, [], [[1], {}], 1.5, None, "é😀"]
    text = json.dumps(values, indent=1, ensure_ascii=False).encode()
    monkeypatch.setattr(json_array, "CHUNK_BYTES", chunk)
    found = list(json_array.elements(io.BufferedReader(io.BytesIO(text)), 1000))
    assert [json.loads(element or b"") for _, element in found] == values
    assert [line for line, _ in found] == [2, 3, 4, 5, 6, 14, 15, 21, 22, 23]


@pytest.mark.parametrize(
    ("element", "code", "hint"),
    [
        (b'{"prompt": NaN}', "not_json", "NaN"),
        (b'{"prompt":\n "q"\n "a"}', "not_json", "at line 5, column 2"),
        (b'{"prompt": "q"}}', "not_json", "Extra data"),
        (b'{"prompt": "q"]', "not_json", "delimiter"),
        (b"", "not_json", "cut off"),
        (b"7", "not_an_object", "single JSON value"),
        (b"[]", "not_an_object", "array"),
        (b'{"prompt": "\xff"}', "not_utf8", "Byte 13"),
        (b"[" * 100_000 + b"]" * 100_000, "not_json", "nested too deeply"),
        (b'{"prompt": "' + b"x" * MAX_ROW_BYTES + b'"}', "line_too_long", "8 MiB"),
    ],
)
def test_a_bad_element_stops_nothing(tmp_path: Path, element: bytes, code: str, hint: str) -> None:
    before, problem, after = read(tmp_path, b"[\n" + ROW + b",\n" + element + b"\n, " + ROW + b"]")
    assert isinstance(problem, RowProblem)
    assert problem.code == code
    assert hint in problem.message
    assert problem.line in (3, 4)
    assert isinstance(before, Pair)
    assert isinstance(after, Pair)
    assert after.line == 4 + element.count(b"\n")


@pytest.mark.parametrize("end", [b"", b",", b',\n{"prompt": "q', b', {"a": [1', b', "\\'])
def test_an_array_without_an_end(tmp_path: Path, end: bytes) -> None:
    problem = last_problem(read(tmp_path, b"[" + ROW + b"\n,\n\n" + ROW + end))
    assert problem.code == "truncated_array"
    assert "has no end" in problem.message
    assert problem.line >= 4 - (end == b"")


def test_text_after_an_array(tmp_path: Path) -> None:
    pair, problem = read(tmp_path, b"[" + ROW + b"]\n" + b" \n" * 100_000 + b"[]")
    assert isinstance(pair, Pair)
    assert isinstance(problem, FileProblem)
    assert (problem.code, problem.line) == ("text_after_array", 100_002)


def test_csv_rows_have_the_line_they_begin_in(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfprompt,chosen,rejected\r\n"a\nb","say ""x""",bad\r\n\r\nq,"good, very",bad\r\n'
    assert read(tmp_path, content) == [Pair(2, "a\nb", 'say "x"', "bad"), Pair(5, "q", "good, very", "bad")]
    for sign in (b";", b"\t"):
        assert read(tmp_path, HEADER.replace(b",", sign) + sign.join([b"q", b"a,b", b"c,d"])) == [
            Pair(2, "q", "a,b", "c,d")
        ]
    # the column without a name is what pandas writes for its index
    assert read(tmp_path, b",question,chosen,rejected\n0,q,good,bad\n") == [Pair(2, "q", "good", "bad")]


def test_cells_may_hold_conversations(tmp_path: Path) -> None:
    user, good = {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["prompt", "chosen", "rejected", "tools"])
    writer.writerow([json.dumps([user], indent=1), json.dumps([good]), '{"not": "a message"}', '[{"name": "f"}]'])
    writer.writerow(["q", "[1, 2]", "{braces}", ""])
    writer.writerow([str([user]), "good", "bad", ""])
    turns, texts, python = read(tmp_path, text.getvalue().encode())
    assert isinstance(turns, Pair)
    assert turns.prompt == (Message("user", "q"),)
    assert turns.rejected == (Message("assistant", '{"not": "a message"}'),)
    assert turns.tools == '[{"type":"function","function":{"name":"f"}}]'
    assert texts == Pair(8, "q", "[1, 2]", "{braces}")
    assert isinstance(python, RowProblem)
    assert (python.code, python.field, python.line) == ("not_json", "prompt", 9)
    assert "json.dumps" in python.message


@pytest.mark.parametrize("name", [*QUESTIONS, *BETTER, *WORSE, *COMPLETIONS])
def test_a_cell_of_any_name_may_hold_messages(name: str) -> None:
    messages = [{"role": "user", "content": "q"}]
    assert unfold({name: json.dumps(messages)}) == {name: messages}
    assert unfold({name: "[1]"}) == {name: "[1]"}


def test_an_empty_cell_stands_behind_a_synonym_that_is_filled(tmp_path: Path) -> None:
    rows = read(tmp_path, b"prompt,question,chosen,rejected\nq,,good,bad\n,q,good,bad\n")
    assert rows == [Pair(line, "q", "good", "bad") for line in (2, 3)]


def test_a_null_in_parquet_is_no_field(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "q", "question": None}, {"prompt": None, "question": "q"}]
    found = parquet(tmp_path, [row | {"chosen": "good", "rejected": "bad", "preferred_output": None} for row in rows])
    assert found == [Pair(line, "q", "good", "bad") for line in (1, 2)]


def test_columns_of_a_csv_file(tmp_path: Path) -> None:
    options = ReadOptions("dpo", {"prompt": "frage", "chosen": "gut", "rejected": "schlecht"})
    user = '"[{""role"": ""user"", ""content"": ""q""}]"'
    (pair,) = read(tmp_path, f"frage,gut,schlecht\n{user},good,bad\n".encode(), options)
    assert pair == Pair(2, (Message("user", "q"),), (Message("assistant", "good"),), (Message("assistant", "bad"),))


@pytest.mark.parametrize(
    ("row", "code", "hint"),
    [
        (b"q,good", "cells_missing", "2 cells, and the header 3"),
        (b"q,good,bad,more", "cells_missing", "4 cells"),
        (b'q,"good"x,bad', "not_csv", "expected after"),
        (b"q,good,", "empty_answer", "`rejected`"),
        (b"q,\xff,bad", "not_utf8", "`chosen`"),
        (b"q,a\0b,bad", "bad_text", "NUL"),
    ],
)
def test_a_bad_csv_row_stops_nothing(tmp_path: Path, row: bytes, code: str, hint: str) -> None:
    before, problem, after = read(tmp_path, HEADER + b"q,good,bad\n" + row + b"\nq,good,bad\n")
    assert isinstance(problem, RowProblem)
    assert (problem.line, problem.code) == (3, code)
    assert hint in problem.message
    assert (before.line, after.line) == (2, 4)


def test_a_bad_row_between_tabs_is_said_in_signs_that_print(tmp_path: Path) -> None:
    content = HEADER + b'q,good,bad\nq,"good"x,bad\n'
    _, problem = read(tmp_path, content.replace(b",", b"\t"))
    assert isinstance(problem, RowProblem)
    assert (problem.line, problem.code) == (3, "not_csv")
    assert "a tab expected after" in problem.message
    assert problem.message.isprintable()


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (b"prompt,chosen,prompt\nq,good,bad\n", "bad_header", 1),
        (HEADER + b'q,good,bad\nq,"good,' + b"x\n" * (MAX_ROW_BYTES // 2), "row_too_long", 3),
        (HEADER + b"q,good,bad\nq," + b"x" * MAX_ROW_BYTES, "row_too_long", 3),
        (HEADER, "empty_file", 1),
    ],
    ids=["header", "quote", "cell", "empty"],
)
def test_a_csv_file_that_is_no_use(tmp_path: Path, content: bytes, code: str, line: int) -> None:
    problem = last_problem(read(tmp_path, content))
    assert (problem.code, problem.line) == (code, line)


@pytest.mark.parametrize(
    ("rows", "code"),
    [(b'q,"good,bad\nq,"good",bad\n', "not_csv"), (b'q,"good,bad\nq,good",bad,more\n', "cells_missing")],
)
def test_where_a_bad_row_of_several_lines_ends_is_said(tmp_path: Path, rows: bytes, code: str) -> None:
    problem, after = read(tmp_path, HEADER + rows + b"q,good,bad\n")
    assert isinstance(problem, RowProblem)
    assert (problem.line, problem.code, after.line) == (2, code, 4)
    assert problem.message.endswith(" It runs to line 3: a quote in it has no end, perhaps.")


def test_a_quote_that_is_open_at_the_end_is_named(tmp_path: Path) -> None:
    *_, problem = read(tmp_path, HEADER + b'q,good,bad\nq,"good,bad\nq,good,bad\n')
    assert isinstance(problem, RowProblem)
    assert (problem.code, problem.line) == ("not_csv", 3)


def test_zstd_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    packed = zstandard.compress((ROW + b"\n") * 3)
    assert lines(read(tmp_path, packed)) == [(Pair, 1), (Pair, 2), (Pair, 3)]
    assert len(read(tmp_path, packed + packed)) == 6
    streamed = zstandard.ZstdCompressor().compressobj()
    assert len(read(tmp_path, streamed.compress((ROW + b"\n") * 50_000) + streamed.flush())) == 50_000


def test_a_damaged_zstd_file_ends_with_a_problem_of_the_file(tmp_path: Path) -> None:
    rows = b"".join(b'{"prompt": "%d", "chosen": "good", "rejected": "bad"}\n' % number for number in range(20_000))
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(rows)
    cut = read(tmp_path, packed[: len(packed) // 2])
    assert all(isinstance(record, Pair) for record in cut[:-1])
    assert last_problem(cut).code == "truncated_zstd"
    for damaged in (packed[:-1] + bytes([packed[-1] ^ 1]), packed + b"and more"):
        assert last_problem(read(tmp_path, damaged)).code == "damaged_zstd"


@pytest.mark.parametrize("form", ["jsonl", "array", "csv"])
@pytest.mark.parametrize("package", [gzip.compress, zstandard.compress])
def test_a_package_unpacks_to_a_limit_and_no_further(tmp_path: Path, form: str, package: type) -> None:
    begin = {"jsonl": b"", "array": b"[", "csv": HEADER + b'q,good,bad\nq,"'}[form]
    problem = last_problem(read(tmp_path, package(begin + (b" " * (2**20 - 1) + b"\n") * 65)))
    assert problem.code == ("unpacks_too_large" if form != "csv" else "row_too_long")


def write_parquet(path: Path, rows: list[dict[str, object]], **options: object) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def parquet(folder: Path, rows: list[dict[str, object]], **options: object) -> list[Record]:
    return list(read_rows(write_parquet(folder / "file.parquet", rows, **options), ReadOptions("dpo")))


def test_rows_of_parquet_are_counted_through_all_row_groups(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": str(number), "chosen": "good" if number != 7 else "", "rejected": "bad"} for number in range(1, 301)
    ]
    records = parquet(tmp_path, rows, row_group_size=10, compression="zstd")
    assert [record.line for record in records] == list(range(1, 301))
    problem = records[6]
    assert isinstance(problem, RowProblem)
    assert (problem.code, problem.line) == ("empty_answer", 7)


def test_nested_parquet_rows(tmp_path: Path) -> None:
    call = {"name": "f", "arguments": "{}"}
    user = {"role": "user", "content": "q"}
    rows: list[dict[str, object]] = [
        {
            "prompt": [user],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": "bad",
            "score": float("nan"),
        },
        {"prompt": [user], "chosen": [{"role": "assistant", "tool_calls": [call]}], "rejected": "bad", "score": 1.0},
        {"prompt": [user], "chosen": None, "rejected": "bad", "score": 1.0},
    ]
    plain, calling, null = parquet(tmp_path, rows)
    assert isinstance(plain, Pair)
    assert plain.chosen == (Message("assistant", "good"),)
    assert isinstance(calling, Pair)
    assert calling.chosen[0] == Message(
        "assistant", "", tool_calls='[{"type":"function","function":{"name":"f","arguments":{}}}]'
    )
    assert isinstance(null, RowProblem)
    assert null.code == "missing_field"


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    texts = pa.array([b"q", b"\xff", b"q"], type=pa.binary()).view(pa.string())
    table = pa.table({"prompt": texts, "chosen": ["a"] * 3, "rejected": [b"b", b"\xff", b"b"]})
    pq.write_table(table, tmp_path / "f")
    before, problem, after = read_rows(tmp_path / "f", ReadOptions("dpo"))
    assert isinstance(problem, RowProblem)
    assert (problem.code, problem.field, problem.line) == ("not_utf8", "prompt", 2)
    assert (before, after) == (Pair(1, "q", "a", "b"), Pair(3, "q", "a", "b"))


def test_damaged_parquet_files(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "f", [{"prompt": str(n), "chosen": "a", "rejected": "b"} for n in range(1000)])
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:4] + bytes(500) + whole[504:], b"PAR1", b"PAR1" * 9):
        problem = last_problem(read(tmp_path, content))
        assert problem.code == "damaged_parquet"
        assert "damaged" in problem.message


def test_a_row_of_parquet_may_be_too_long(tmp_path: Path) -> None:
    long: dict[str, object] = {"prompt": "q" * MAX_ROW_BYTES, "chosen": "a", "rejected": "b"}
    problem, pair = parquet(tmp_path, [long, long | {"prompt": "q"}])
    assert isinstance(problem, RowProblem)
    assert (problem.code, problem.line) == ("line_too_long", 1)
    assert isinstance(pair, Pair)


def test_a_parquet_file_unpacks_to_a_limit_and_no_further(tmp_path: Path) -> None:
    # one text of a megabyte, in a dictionary, for every row
    rows: list[dict[str, object]] = [{"prompt": "q" * 2**20, "chosen": "a", "rejected": "b"}] * 100
    problem = last_problem(parquet(tmp_path, rows))
    assert problem.code == "unpacks_too_large"
    assert unpack.FREE_BYTES < 100 * 2**20


def test_a_row_group_may_say_that_it_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "f", [{"prompt": "q"}])
    monkeypatch.setattr(parquet_program, "MAX_GROUP_BYTES", 10)
    said = parquet_program._too_large(pq.ParquetFile(path).metadata)
    assert said is not None
    assert "Row group 1 says that it unpacks to" in said


def test_a_parquet_file_that_needs_too_much_memory(tmp_path: Path) -> None:
    """One list of 100 million nulls: a few kilobytes in the file, gigabytes in memory."""
    offsets = pa.array([0, 100_000_000], type=pa.int32())
    values = pa.nulls(100_000_000, pa.int8())
    table = pa.table({"prompt": pa.ListArray.from_arrays(offsets, values)})
    pq.write_table(table, tmp_path / "f", compression="zstd")
    assert (tmp_path / "f").stat().st_size < 2**20
    problem = last_problem(list(read_rows(tmp_path / "f", ReadOptions("dpo"))))
    assert problem.code in ("parquet_too_large", "unpacks_too_large")


def test_too_little_memory_for_parquet_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "f", [{"prompt": str(number) * 1000} for number in range(10_000)])
    monkeypatch.setattr(parquet_rows, "MEMORY_BYTES", 2**20)
    problem = last_problem(list(read_rows(path, ReadOptions("dpo"))))
    assert problem.code == "parquet_too_large"
    assert "more than 1 MiB of memory. Write smaller row groups" in problem.message


def test_too_little_time_for_parquet_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "f", [{"prompt": [str(number)] * 9} for number in range(1000)])
    pq.write_table(pa.concat_tables([pq.read_table(path)] * 300), path, compression="zstd")
    monkeypatch.setattr(parquet_rows, "CPU_SECONDS", 1)
    monkeypatch.setattr(parquet_rows, "CPU_SECONDS_PER_MIB", 0)
    *_, last = raw_rows(path)
    assert isinstance(last, FileProblem)
    assert last.code == "parquet_too_slow"
    assert "more than 1 s of processor time" in last.message


def test_a_parquet_reader_that_is_killed_says_nothing_of_the_file(tmp_path: Path) -> None:
    rows = raw_rows(write_parquet(tmp_path / "f", [{"prompt": "q" * 1000, "n": number} for number in range(10_000)]))
    assert isinstance(next(rows), RawRow)
    (reader,) = [child for child in psutil.Process().children() if "dpo_core.data.parquet_program" in child.cmdline()]
    reader.kill()
    with pytest.raises(RunError) as refused:
        for _ in rows:
            pass
    assert (refused.value.failure.kind, refused.value.failure.code) == ("resource", "reader_killed")
