from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import pytest

from dpo_core.data import formats, unpack
from dpo_core.data.formats import read_rows
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import Example, FileProblem, Message, Pair, RowProblem
from dpo_core.spec import Method
from tests.makers import write_preference_file, write_rows, write_supervised_file

Record = Pair | Example | RowProblem | FileProblem
USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
OPENAI = {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}


def one(folder: Path, row: object, method: Method = "dpo") -> Record:
    (record,) = read_rows(write_rows(folder / "file.jsonl", [row]), ReadOptions(method))
    return record


def raw(folder: Path, content: bytes, method: Method = "dpo") -> list[Record]:
    path = folder / "file.jsonl"
    path.write_bytes(content)
    return list(read_rows(path, ReadOptions(method)))


def test_the_makers_files_are_read_whole(tmp_path: Path) -> None:
    pairs = list(read_rows(write_preference_file(tmp_path / "pairs.jsonl", 50), ReadOptions("dpo")))
    examples = list(read_rows(write_supervised_file(tmp_path / "examples.jsonl", 50), ReadOptions("supervised")))
    assert [pair.line for pair in pairs if isinstance(pair, Pair)] == list(range(1, 51))
    assert [example.line for example in examples if isinstance(example, Example)] == list(range(1, 51))


TURNS = Pair(1, (Message("user", "q"),), (Message("assistant", "good"),), (Message("assistant", "bad"),))


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        (OPENAI, TURNS),
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, Pair(1, "q", "good", "bad")),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, TURNS),
        ({"prompt": [USER], "chosen": "good", "rejected": "bad"}, TURNS),
        ({"prompt": "q", "chosen": [GOOD], "rejected": "bad"}, TURNS),
        ({"prompt": "q", "chosen": "good", "rejected": "bad", "score": 3, "label": None}, Pair(1, "q", "good", "bad")),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, TURNS),
        ({"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant:  bad\n"}, TURNS),
        ({"chosen": "Human: q\n\nAssistant: good", "rejected": [USER, BAD]}, TURNS),
    ],
)
def test_preference_shapes(tmp_path: Path, row: object, pair: Pair) -> None:
    assert one(tmp_path, row) == pair


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"messages": [USER, GOOD]}, Example(1, (Message("user", "q"),), (Message("assistant", "good"),))),
        ({"prompt": "q", "completion": "good"}, Example(1, "q", "good")),
        (
            {"prompt": [USER], "completion": "good"},
            Example(1, (Message("user", "q"),), (Message("assistant", "good"),)),
        ),
    ],
)
def test_supervised_shapes(tmp_path: Path, row: object, example: Example) -> None:
    assert one(tmp_path, row, "supervised") == example


def test_text_parts_are_joined_and_developer_is_the_system_turn(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    turns = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    record = one(tmp_path, {"prompt": turns, "chosen": "4", "rejected": "5"})
    assert isinstance(record, Pair)
    assert record.prompt == (Message("system", "be brief"), Message("user", "2+2?"))


def transcripts(chosen: str, rejected: str) -> dict[str, object]:
    return {
        "chosen": f"\n\nHuman: q\n\nAssistant: {chosen}",
        "rejected": f"\n\nHuman: q\n\nAssistant: {rejected}",
    }


def explicit(**change: object) -> dict[str, object]:
    return {"prompt": "q", "chosen": "good", "rejected": "bad"} | change


@pytest.mark.parametrize(
    ("row", "code", "field", "hint"),
    [
        ("text", "not_an_object", None, "object"),
        ({"prompt": "q", "choosen": "good", "rejected": "bad"}, "missing_field", "chosen", "Rename it to `chosen`"),
        ({"prompt": "q", "chosen": "good"}, "missing_field", "rejected", "Add it"),
        ({"chosen": "good", "rejected": "bad"}, "missing_field", "prompt", "Add it"),
        (explicit(rejected=None), "missing_field", "rejected", "null"),
        (OPENAI | {"input": {"message": [USER]}}, "missing_field", "input.messages", "Rename it to `messages`"),
        (OPENAI | {"input": "q"}, "wrong_type", "input", "object"),
        (explicit(prompt=7), "wrong_type", "prompt", "a number"),
        (explicit(prompt={"a": 1}), "wrong_type", "prompt", "an object"),
        (explicit(chosen={"a": 1}), "missing_field", "chosen.role", "missing"),
        (explicit(chosen=[]), "wrong_type", "chosen", "empty list"),
        (explicit(chosen=["text"]), "wrong_type", "chosen[0]", "object"),
        (explicit(prompt=[{"role": "judge", "content": "q"}]), "bad_role", "prompt[0].role", "user"),
        (explicit(prompt=[{"role": ["user"], "content": "q"}]), "bad_role", "prompt[0].role", "user"),
        (explicit(prompt=[{"role": "user"}]), "missing_field", "prompt[0].content", "Add it"),
        (transcripts("good", "good "), "equal_answers", "rejected", "equal"),
        (transcripts("", "bad"), "empty_answer", "chosen", "empty"),
        (transcripts("good", "bad\n\nHuman: r"), "prompts_differ", "rejected", "differ from turn 2 on"),
        (transcripts("good\n\nAssistant: b", "good"), "prompts_differ", "rejected", "`chosen` (3 turns)"),
        (transcripts("good\n\nHuman: b", "good\n\nHuman: c"), "bad_answer_role", "chosen", "assistant"),
        (transcripts("a\n\nAssistant: b", "a\n\nAssistant: c"), "bad_prompt_end", "chosen", "assistant turn"),
        (transcripts("good", "bad") | {"rejected": "bad"}, "bad_transcript", "rejected", "`Human:`"),
        (transcripts("good", "bad") | {"rejected": None}, "missing_field", "rejected", "null"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "missing_field", "prompt", "Add it"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}, "prompts_differ", "rejected", "turn 3"),
        ({"chosen": "Assistant: a", "rejected": "Assistant: b"}, "empty_prompt", "chosen", "empty"),
        (explicit(prompt=" \n"), "empty_prompt", "prompt", "empty"),
        (explicit(prompt=[USER, GOOD]), "bad_prompt_end", "prompt", "assistant turn"),
        (explicit(chosen="  "), "empty_answer", "chosen", "empty"),
        (explicit(rejected=[{"role": "assistant", "content": ""}]), "empty_answer", "rejected", "empty"),
        (explicit(rejected="good "), "equal_answers", "rejected", "equal"),
        (explicit(chosen=[USER]), "bad_answer_role", "chosen", "assistant"),
        (explicit(chosen=[USER, GOOD]), "prompt_in_answer", "chosen", "prompt"),
        (explicit(chosen=[GOOD, GOOD]), "many_turns", "chosen", "speaks twice"),
        (explicit(chosen=[GOOD | {"refusal": "No."}]), "unsupported_field", "chosen[0].refusal", "`content`"),
        (explicit(image="cat.png"), "unsupported_content", "image", "holds an image"),
        (explicit(chosen=[GOOD | {"audio": {"id": "a"}}]), "unsupported_content", "chosen[0].audio", "holds sound"),
        (
            explicit(prompt=[{"role": "user", "content": [{"type": "image_url"}]}]),
            "unsupported_content",
            None,
            "an image",
        ),
        (explicit(prompt=[{"role": "user", "content": [{"type": "x"}]}]), "unsupported_content", None, "type `x`"),
        (explicit(chosen="a\0b"), "bad_text", "chosen", "NUL"),
        (explicit(chosen="\ud83d"), "bad_text", "chosen", "surrogate"),
        ({"messages": [USER, GOOD], "label": True}, "unpaired", "label", "unpaired"),
        ({"prompt": "q", "completion": "good", "label": False}, "unpaired", "label", "unpaired"),
        ({"messages": [USER, GOOD]}, "wrong_method", None, "`supervised`"),
        ({"question": "q", "answer": "a"}, "wrong_method", None, "`supervised`"),
        ({"text": "q", "\n\0" * 99: "a"}, "unknown_format", None, "`text`, `\\x0a\\x00"),
        ({}, "unknown_format", None, "none"),
        ({"frage": "q", "gut": "a"}, "unknown_format", None, "or say in `columns` what the file calls `prompt`"),
        (
            {"frage": "q", "chosen": "a", "rejected": "b"},
            "missing_field",
            "prompt",
            "has `frage`, `chosen`, `rejected`.",
        ),
        (
            {"frage": "q", "chosen": "a", "rejected": "b"},
            "missing_field",
            "prompt",
            "say in `columns` what it is called",
        ),
    ],
)
def test_bad_preference_rows(tmp_path: Path, row: object, code: str, field: str | None, hint: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (problem,) = read_rows(path, ReadOptions("dpo"))
    assert isinstance(problem, RowProblem)
    assert (problem.line, problem.code) == (1, code)
    assert field is None or problem.field == field
    assert hint in problem.message


@pytest.mark.parametrize(
    ("row", "code", "hint"),
    [
        (OPENAI, "wrong_method", "`dpo`"),
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "wrong_method", "`dpo`"),
        ({"messages": [USER]}, "bad_answer_role", "last message"),
        ({"messages": [GOOD]}, "empty_prompt", "empty"),
        ({"messages": []}, "wrong_type", "empty list"),
        ({"messages": [USER, GOOD | {"weight": 0}]}, "zero_weight", "messages[1].weight"),
        ({"prompt": "q", "completions": "a"}, "missing_field", "Rename it to `completion`"),
        ({"messages": [USER, GOOD], "label": True}, "unpaired", "unpaired"),
    ],
)
def test_bad_supervised_rows(tmp_path: Path, row: object, code: str, hint: str) -> None:
    problem = one(tmp_path, row, "supervised")
    assert isinstance(problem, RowProblem)
    assert problem.code == code
    assert hint in problem.message


def test_columns_override_the_detection(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "f.jsonl", [{"frage": "q", "gut": "good", "chosen": "?", "rejected": "bad"}])
    columns = {"prompt": "frage", "chosen": "gut"}
    assert list(read_rows(file, ReadOptions("dpo", columns))) == [Pair(1, "q", "good", "bad")]
    (problem,) = read_rows(file, ReadOptions("dpo", columns | {"chosen": "gute"}))
    assert isinstance(problem, RowProblem)
    assert (problem.code, problem.field) == ("missing_field", "gute")
    assert "`columns` says that `chosen` is `gute`, which the row doesn't have; `gut` is there." in problem.message


ROW = b'{"prompt": "q", "chosen": "good", "rejected": "bad"}'


@pytest.mark.parametrize(
    ("line", "code", "hint"),
    [
        (b"{", "not_json", "cut off after column 1."),
        (b'{"prompt": "q", "cho\r', "not_json", "begins at column 17 has no end; the row is cut off"),
        (ROW[:-1], "not_json", f"cut off after column {len(ROW) - 1}."),
        (b'{"prompt": "q" "chosen": "a"}', "not_json", "Expecting ',' delimiter at column 16."),
        (b'{"prompt": NaN}', "not_json", "NaN"),
        (b'{"prompt": -Infinity}', "not_json", "Infinity"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "not_json", "digits"),
        (b'{"a": ' + b"[" * 100_000, "not_json", "nested too deeply"),
        (b'{"prompt": "\xff"}', "not_utf8", "Byte 13"),
        (b'{"prompt": "a\0b"}', "not_json", "Invalid control character at column 14"),
        (b'{"prompt": "a", "prompt": "b"}', "duplicate_field", 'field "prompt" twice'),
    ],
)
def test_a_bad_line_stops_nothing(tmp_path: Path, line: bytes, code: str, hint: str) -> None:
    before, problem, after = raw(tmp_path, ROW + b"\n" + line + b"\n" + ROW)
    assert isinstance(before, Pair)
    assert isinstance(problem, RowProblem)
    assert (problem.line, problem.code) == (2, code)
    assert hint in problem.message
    assert isinstance(after, Pair)
    assert after.line == 3


def test_byte_order_mark_crlf_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    records = raw(tmp_path, b"\xef\xbb\xbf" + ROW + b"\r\n\r\n" + ROW + b"\r\n\n")
    assert [(type(record), record.line) for record in records] == [(Pair, 1), (Pair, 3)]


def test_a_longer_transcript_is_split_into_turns(tmp_path: Path) -> None:
    said = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHow are you? Human: no turn\n\nHuman: Well.\n\nAssistant:"
    record = one(tmp_path, {"chosen": f"{said} Good.", "rejected": f"{said} Bad.\n\nTwo lines."})
    prompt = (
        Message("user", "Hi"),
        Message("assistant", "Hello.\n\nHow are you? Human: no turn"),
        Message("user", "Well."),
    )
    answers = (Message("assistant", "Good."),), (Message("assistant", "Bad.\n\nTwo lines."),)
    assert record == Pair(1, prompt, *answers)


def test_gzip_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    lines = (ROW + b"\n") * 3
    assert [type(record) for record in raw(tmp_path, gzip.compress(lines))] == [Pair] * 3
    # two members, one after the other, as `cat a.gz b.gz` makes them
    assert len(raw(tmp_path, gzip.compress(lines) + gzip.compress(lines))) == 6
    (empty,) = raw(tmp_path, gzip.compress(b""))
    assert isinstance(empty, FileProblem)
    assert empty.code == "empty_file"


def test_a_damaged_gzip_file_ends_with_a_problem_of_the_file(tmp_path: Path) -> None:
    rows = b"".join(b'{"prompt": "%d", "chosen": "good", "rejected": "bad"}\n' % number for number in range(20_000))
    packed = gzip.compress(rows)
    *before, cut = raw(tmp_path, packed[: len(packed) // 2])
    assert all(isinstance(record, Pair) for record in before)
    assert isinstance(cut, FileProblem)
    assert (cut.code, cut.line) == ("truncated_gzip", len(before) + 1)
    for damaged in (packed[:-8] + bytes(8), packed[:10] + b"\xff" * 100, packed + b"more"):
        last = raw(tmp_path, damaged)[-1]
        assert isinstance(last, FileProblem)
        assert last.code == "damaged_gzip"


def test_a_gzip_file_unpacks_to_a_limit_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    megabyte = b" " * (2**20 - 1) + b"\n"
    *_, problem = raw(tmp_path, gzip.compress(megabyte * 65))
    assert isinstance(problem, FileProblem)
    assert problem.code == "unpacks_too_large"
    assert "unpacks to more than 67,108,864 bytes" in problem.message
    monkeypatch.setattr(unpack, "FREE_BYTES", 1000)
    assert [unpack.unpacked_limit(size) for size in (1, 11, 2**40)] == [1000, 1100, 32 * 2**30]


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows(tmp_path: Path, content: bytes) -> None:
    (problem,) = raw(tmp_path, content)
    assert isinstance(problem, FileProblem)
    assert problem.code == "empty_file"


@pytest.mark.parametrize(
    ("content", "code", "hint"),
    [
        ("prompt,chosen,rejected\n".encode("utf-16"), "not_utf8", "UTF-16"),
        ("prompt,chosen,rejected\n".encode("utf-16-be"), "not_utf8", "UTF-16"),
        (json.dumps({"prompt": "q"}).encode("utf-32-le"), "not_utf8", "Save it as UTF-8"),
        (b"\0" * 1000, "not_utf8", "UTF-8"),
        (b"PK\x03\x04" + bytes(100), "not_data", "Excel"),
        (pickle.dumps([{"prompt": "a"}]), "not_data", "a Python pickle: a program, and never opened here"),
        (gzip.compress(pickle.dumps({}, protocol=2)), "not_data", "a Python pickle"),
        (gzip.compress(gzip.compress(b"{}")), "not_data", "packed twice"),
        (gzip.compress(b"PAR1" + bytes(100)), "not_data", "Parquet file that was packed"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, code: str, hint: str) -> None:
    (problem,) = raw(tmp_path, content)
    assert isinstance(problem, FileProblem)
    assert (problem.line, problem.code) == (1, code)
    assert hint in problem.message


def test_an_object_over_several_lines_is_no_row(tmp_path: Path) -> None:
    first = raw(tmp_path, json.dumps({"prompt": "q"}, indent=1).encode())[0]
    assert isinstance(first, RowProblem)
    assert (first.line, first.code) == (1, "not_json")
    assert "Write each object on one line" in first.message


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_over_the_limit_is_skipped(tmp_path: Path, end: bytes) -> None:
    records = raw(tmp_path, b"x" * (2 * formats.MAX_ROW_BYTES + 10) + end + (ROW if end else b""))
    assert isinstance(records[0], RowProblem)
    assert (records[0].code, records[0].line) == ("line_too_long", 1)
    assert [(type(record), record.line) for record in records[1:]] == ([(Pair, 2)] if end else [])


def test_a_line_at_the_limit_is_read(tmp_path: Path) -> None:
    line = ROW + b" " * (formats.MAX_ROW_BYTES - len(ROW) - 1) + b"\n"
    assert [type(record) for record in raw(tmp_path, line + ROW)] == [Pair, Pair]
