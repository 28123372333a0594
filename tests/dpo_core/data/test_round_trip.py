"""The same rows give the same records from every kind of file."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dpo_core.data.formats import read_rows
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import Example, FileProblem, Pair, RowProblem

Row = dict[str, object]

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
said = texts.map(lambda text: f"a{text}")
arguments = st.dictionaries(texts, st.none() | st.booleans() | st.integers() | texts | st.lists(texts), max_size=3)
calls = st.builds(
    lambda names, given: [
        {"id": name, "type": "function", "function": {"name": name, "arguments": json.dumps(given)}} for name in names
    ],
    st.lists(said, min_size=1, max_size=2),
    arguments,
)


def turn(role: str, **fields: st.SearchStrategy[object]) -> st.SearchStrategy[Row]:
    return st.fixed_dictionaries({"role": st.just(role), "content": said, **fields})


prompts = st.lists(turn("user") | turn("system"), min_size=1, max_size=3).map(
    lambda turns: [*turns, {"role": "user", "content": "q"}]
)
plain_answers = st.lists(turn("assistant", reasoning_content=texts), min_size=1, max_size=1)
tool_answers = st.tuples(turn("assistant", tool_calls=calls), turn("tool", tool_call_id=said), turn("assistant")).map(
    list
)
answers = said | plain_answers | tool_answers
rows = st.fixed_dictionaries(
    {"prompt": said | prompts, "chosen": answers, "rejected": answers},
    optional={
        "system": said,
        "tools": st.just(json.dumps([{"name": "f", "parameters": {"type": "object"}}])),
        "chat_template_kwargs": st.just('{"enable_thinking": false}'),
    },
)


def jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def array(rows: list[Row]) -> bytes:
    return json.dumps(rows, indent=2).encode()


def csv_text(rows: list[Row]) -> bytes:
    names = ["prompt", "chosen", "rejected", "system", "tools", "chat_template_kwargs"]
    file = io.StringIO()
    writer = csv.DictWriter(file, names, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(
        {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()} for row in rows
    )
    return file.getvalue().encode()


def as_messages(row: Row) -> Row:
    """A column of Parquet has one type, so texts become the messages that they stand for."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    texts = [name for name in roles if isinstance(row[name], str)]
    return row | {name: [{"role": roles[name], "content": row[name]}] for name in texts}


def parquet(rows: list[Row]) -> bytes:
    names = {name: None for row in rows for name in row}
    columns = {name: [row.get(name) for row in rows] for name in names}
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=2)
    return file.getvalue()


def read(content: bytes) -> list[Pair | Example | RowProblem | FileProblem]:
    """The records, with the numbers of their rows for lines, and everything as turns."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        return [replace(record, line=number) for number, record in enumerate(read_rows(path, ReadOptions("dpo")), 1)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(rows, min_size=1, max_size=4))
def test_every_kind_of_text_file_gives_the_same_records(rows: list[Row]) -> None:
    expected = read(jsonl(rows))
    assert len(expected) == len(rows)
    for content in (array(rows), csv_text(rows), gzip.compress(jsonl(rows)), zstandard.compress(array(rows))):
        assert read(content) == expected
    for row, record in zip(rows, expected, strict=True):
        assert isinstance(record, Pair) or record.code in ("equal_answers", "two_systems")
        if isinstance(record, Pair) and isinstance(record.prompt, str):
            assert [record.prompt, record.chosen, record.rejected] == [row["prompt"], row["chosen"], row["rejected"]]


# Each example starts Parquet's reader more than once, which is too slow to shrink one.
@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(rows, min_size=3, max_size=8))
def test_parquet_gives_the_same_records(rows: list[Row]) -> None:
    turns = [as_messages(row) for row in rows]
    assert read(parquet(turns)) == read(jsonl(turns))
