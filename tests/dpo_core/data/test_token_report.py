from __future__ import annotations

from pathlib import Path

import pytest

from dpo_core.data.dataset import load
from dpo_core.data.file_check import method_of
from dpo_core.data.options import ReadOptions
from dpo_core.data.render import Renderer
from dpo_core.data.token_report import check_tokens
from dpo_core.errors import RunError
from dpo_core.prepare_report import Lengths
from dpo_core.spec import ModelSource
from tests.makers import make_tokenizer, write_preference_file, write_rows, write_supervised_file


def source(folder: Path) -> ModelSource:
    return ModelSource(id="base/tiny", path=folder)


def test_lengths_are_those_that_a_job_would_measure(tiny_model: Path, tmp_path: Path) -> None:
    path = write_preference_file(tmp_path / "a.jsonl", 50)
    report = check_tokens(path, source(tiny_model))
    table = load([path], ReadOptions("dpo"), lambda: Renderer(tiny_model), None, tmp_path / "t", processes=1)
    assert report.lengths == Lengths.of(table.facts.lengths)
    assert (report.method, report.rows, report.problems, report.findings) == ("dpo", 50, [], [])


def test_rows_longer_than_the_models_context_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    pair = {"prompt": "What is 1+1?", "chosen": "2", "rejected": "3"}
    rows: list[object] = [pair, pair | {"prompt": "x" * 6000}, pair | {"prompt": "y"}]
    report = check_tokens(write_rows(tmp_path / "a.jsonl", rows), source(tiny_model))
    assert report.longer == 1
    assert report.lengths.longest > report.max_length
    assert "context" in report.max_length_reason


def test_what_a_template_makes_odd_is_said_by_line(tiny_model: Path, tmp_path: Path) -> None:
    example = {"prompt": "What is 1+1?", "completion": "2"}
    rows: list[object] = [example, example | {"completion": "<|im_end|> 3"}, {"prompt": "bad"}]
    report = check_tokens(write_rows(tmp_path / "a.jsonl", rows), source(tiny_model))
    assert (report.method, report.rows) == ("supervised", 2)
    assert {found.code: found.lines for found in report.findings}["special_token_in_text"] == [2]
    assert report.problems == [], "what is wrong with a row for every model is in the file's own report"


def test_conversations_need_a_template(tmp_path: Path) -> None:
    bare = make_tokenizer(tmp_path / "bare", chat_template=None)
    (bare / "config.json").write_text('{"vocab_size": 300}')
    with pytest.raises(RunError, match="no chat template"):
        check_tokens(write_preference_file(tmp_path / "a.jsonl", 3), source(bare))


def test_the_first_rows_tell_the_method(tmp_path: Path) -> None:
    assert method_of(write_preference_file(tmp_path / "p.jsonl", 3)) == "dpo"
    assert method_of(write_supervised_file(tmp_path / "s.jsonl", 3)) == "supervised"
    assert method_of(write_rows(tmp_path / "b.jsonl", [1, 2])) == "dpo"
