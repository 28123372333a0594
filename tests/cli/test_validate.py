"""`dpo validate`, without a server."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.columns import columns_of
from cli.errors import CommandFailed
from cli.validate import coloured, lines_of, validate
from dpo_core.data.options import ReadOptions
from dpo_core.data.preview import preview
from dpo_core.data.render import Renderer
from tests.cli.running import dpo
from tests.makers import CHAT_TEMPLATE, make_tokenizer, write_preference_file, write_rows

BAD = {"prompt": "q", "chosen": "same", "rejected": "same"}


def run(file: Path, model: Path, **asked: Any) -> tuple[bool, str]:
    """Whether all rows can be used, and what was printed."""
    seen = io.StringIO()
    console = Console(file=seen, soft_wrap=True, highlight=False, **asked.pop("terminal", {}))
    good = validate(file, model, ReadOptions("dpo"), console=console, **{"max_length": None, "lines": []} | asked)
    return good, seen.getvalue()


def test_a_good_file_is_shown_and_counted(tmp_path: Path) -> None:
    file = write_preference_file(tmp_path / "f.jsonl", 5)
    good, said = run(file, make_tokenizer(tmp_path / "model"), max_length=128)
    assert good
    assert said.count("chosen,") == said.count("rejected,") == 3
    assert "<|im_start|>user\nWhat is" in said
    assert "5 rows: 5 can be used, 0 bad" in said
    assert "max_length 128: the prompt's beginning is cut in 0 rows" in said
    assert "\x1b[" not in said, "no colours where there is no terminal"


def test_bad_rows_are_named_with_the_way_out_and_the_exit_code_is_1(tmp_path: Path) -> None:
    model = make_tokenizer(tmp_path / "model")
    file = write_rows(tmp_path / "f.jsonl", [{"q": "hi", "chosen": "a", "rejected": "b"}, {"q": "hi"} | BAD])
    done = dpo("validate", file, "--model", model, "--columns", "prompt=q", "--lines", "2,7")
    assert done.returncode == 1
    assert "line 2" in done.stdout
    assert "line 1\n" not in done.stdout
    assert "no row: line 7" in done.stdout
    assert "1 row: the two answers are equal (line 2)" in done.stdout


def test_what_becomes_of_every_row_is_counted(tmp_path: Path) -> None:
    talk = [{"role": role, "content": word * 20} for role, word in [("user", "a"), ("assistant", "b"), ("user", "c")]]
    rows = [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in ("q", talk, "q" * 500, "<|im_end|>")]
    file = write_rows(tmp_path / "f.jsonl", [*rows, rows[0]])
    good, said = run(file, make_tokenizer(tmp_path / "model"), max_length=80)
    assert good
    assert "5 rows: 4 can be used, 0 bad" in said
    assert "cut: 61 tokens of the prompt (its turns 1, 2)" in said
    assert "the prompt's beginning is cut in 1 row (25.0%)" in said
    assert "1 row (line 3) don't fit" in said
    assert "1 row (line 4): The row's own text holds a special token" in said
    assert "repeats an earlier row (line 1)" in said


def test_where_no_row_can_be_shown_no_colours_are_explained(tmp_path: Path) -> None:
    good, said = run(write_rows(tmp_path / "f.jsonl", [{"frage": "q"}]), make_tokenizer(tmp_path / "model"))
    assert not good
    assert said.startswith("line 1\ncan't be used: No known format has these fields: `frage`.")


def test_what_cannot_be_meant_is_said(tmp_path: Path) -> None:
    model = make_tokenizer(tmp_path / "model")
    with pytest.raises(CommandFailed, match="can't be read: No such file"):
        run(tmp_path / "none.jsonl", model)
    with pytest.raises(CommandFailed, match="base/tiny: there is no such folder"):
        run(write_preference_file(tmp_path / "f.jsonl", 1), Path("base/tiny"))
    with pytest.raises(CommandFailed, match=r"no tokenizer\.json"):
        run(write_preference_file(tmp_path / "f.jsonl", 1), tmp_path)
    for columns, word in (("prompt", "FIELD=COLUMN"), ("=q", "FIELD=COLUMN"), ("promt=q", "Did you mean `prompt`")):
        with pytest.raises(CommandFailed, match=word):
            columns_of([columns])
    for lines in ("1,x", "0", "", "1,"):
        with pytest.raises(CommandFailed, match="no line number"):
            lines_of(lines)
    assert (columns_of(["prompt=a=b"]), lines_of("3, 17"), lines_of(None)) == ({"prompt": "a=b"}, [3, 17], [])


def test_tokens_have_the_colour_of_what_they_are_for(tmp_path: Path) -> None:
    renderer = Renderer(make_tokenizer(tmp_path / "model"))
    file = write_rows(tmp_path / "f.jsonl", [{"prompt": "q", "chosen": "yes", "rejected": "no"}])
    (row,) = preview(file, renderer, ReadOptions("dpo")).rows
    for sequence, style, answer in zip(row.sequences, ("green", "red"), ("yes", "no"), strict=True):
        text = coloured(sequence, row.shared)
        learned = "".join(text.plain[span.start : span.end] for span in text.spans if span.style == style)
        assert learned == answer + "<|im_end|>"
        assert "".join(text.plain[it.start : it.end] for it in text.spans if it.style == "dim").endswith("assistant\n")
    _, said = run(file, tmp_path / "model", terminal={"force_terminal": True, "color_system": "standard"})
    assert "\x1b[32m" in said


def test_a_chat_template_of_ones_own(tmp_path: Path) -> None:
    model, file = make_tokenizer(tmp_path / "model"), write_preference_file(tmp_path / "f.jsonl", 2)
    template = tmp_path / "own.jinja"
    template.write_text("MINE " + CHAT_TEMPLATE)
    done = dpo("validate", file, "--model", model, "--chat-template", template)
    assert done.returncode == 0, done.stderr
    assert "MINE <|im_start|>user" in done.stdout
    template.write_bytes(b"\xff")
    for path, said in ((template, "it is not UTF-8 text"), (tmp_path / "none", "No such file or directory")):
        done = dpo("validate", file, "--model", model, "--chat-template", path)
        assert done.returncode != 0
        assert said in " ".join(done.stderr.split())
