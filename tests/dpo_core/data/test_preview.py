"""The preview shows the ids that are trained on, and what each of them is for."""

from __future__ import annotations

import gzip
import json
from datetime import date
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.data.dataset import load
from dpo_core.data.options import ReadOptions
from dpo_core.data.parts import table_path
from dpo_core.data.preview import (
    MOST_TOKENS,
    ROWS,
    WINDOW,
    PreviewRow,
    PreviewSequence,
    places,
    preview,
    preview_row,
)
from dpo_core.data.records import Example, Message, Pair, TokenItem, TokenPair
from dpo_core.data.render import Renderer
from dpo_core.data.run_data import make_tables
from dpo_core.data.token_table import TokenTable
from dpo_core.packing import rows_of
from dpo_core.spec import ModelSource, RunSpec, TrainingSpec
from tests.dpo_core.data.conversations import TOOLS, call
from tests.makers import CHAT_TEMPLATE, make_tokenizer, real_data, write_preference_file, write_rows

DPO = ReadOptions("dpo")


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(make_tokenizer(tmp_path_factory.mktemp("chat")))


def ids(sequence: PreviewSequence) -> list[int]:
    return [token.id for token in sequence.tokens]


def text(sequence: PreviewSequence, role: str | None = None) -> str:
    return "".join(token.text for token in sequence.tokens if role in (None, token.role))


def row(prompt: Any, chosen: str = "yes", rejected: str = "no") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def trained_on(file: Path, folder: Path, scratch: Path, limit: int | None = None) -> list[TokenItem]:
    return list(load([file], DPO, partial(Renderer, folder), limit, scratch / "table.safetensors"))


def test_preview_ids_are_training_ids_are_chat_ids(tmp_path: Path) -> None:
    renderer = Renderer(make_tokenizer(tmp_path / "model"))
    file = write_preference_file(tmp_path / "f.jsonl", 12)
    trained = trained_on(file, tmp_path / "model", tmp_path)
    shown = preview(file, renderer, DPO, lines=range(1, 13)).rows
    for item, it in zip(trained, shown, strict=True):
        assert isinstance(item, TokenPair)
        assert [ids(sequence) for sequence in it.sequences] == item.sequences
        question = json.loads(file.read_text().splitlines()[item.line - 1])["input"]["messages"][0]["content"]
        for sequence, answer in zip(it.sequences, item.sequences, strict=True):
            opening = renderer.prompt((Message("user", question),))
            learned = [token.id for token in sequence.tokens if token.role == "learned"]
            assert opening + learned == answer
            assert sequence.learned == len(learned)
    assert len(preview(file, renderer, DPO).rows) == ROWS


def test_ids_of_a_real_file_are_those_that_are_trained_on(tmp_path: Path) -> None:
    folder = real_data("tokenizers/minimind")
    with gzip.open(real_data("hh-rlhf/harmless-base_test.jsonl.gz")) as whole:
        file = tmp_path / "some.jsonl"
        file.write_bytes(b"".join(islice(whole, 100)))
    renderer = Renderer(folder)
    trained = {item.line: item for item in trained_on(file, folder, tmp_path, 512)}
    for it in preview(file, renderer, DPO, lines=range(1, 100), max_length=512).rows:
        if it.problems:
            assert it.line not in trained
            continue
        assert [ids(sequence) for sequence in it.sequences] == trained[it.line].sequences


def test_what_is_silent_in_the_preview_is_silent_in_training(tmp_path: Path) -> None:
    """From a file in OpenAI's form to the table that is trained on."""
    called = {"role": "assistant", "content": None, "tool_calls": json.loads(call("Paris"))}
    turns = [called, {"role": "tool", "content": "sunny"}, {"role": "assistant", "content": "Sun."}]
    rows = [row([{"role": "user", "content": "Weather?"}]) | {"chosen": turns, "tools": json.loads(TOOLS)}, row("q")]
    rows[0]["rejected"] = [*turns[:2], called, {"role": "tool", "content": "rainy"}, *turns[2:]]
    file, folder = write_rows(tmp_path / "f.jsonl", rows), make_tokenizer(tmp_path / "model")
    shown = preview(file, Renderer(folder), DPO).rows
    trained = trained_on(file, folder, tmp_path)
    assert [len(item.rejected_silent) for item in trained if isinstance(item, TokenPair)] == [2, 0]
    for it, item in zip(shown, trained, strict=True):
        for sequence, packed in zip(it.sequences, rows_of(item), strict=True):
            roles = [token.role for token in sequence.tokens]
            assert [place for place, role in enumerate(roles) if role == "learned"] == packed.learned().tolist()


def test_every_token_says_what_it_is_for(renderer: Renderer) -> None:
    answer = (
        Message("assistant", "look", tool_calls=call("Paris")),
        Message("tool", "sunny"),
        Message("assistant", "sun"),
    )
    made = preview_row(
        Pair(5, (Message("user", "é?"),), answer, (Message("assistant", "look"),), tools=TOOLS), renderer, None
    )
    chosen, rejected = made.sequences
    assert text(chosen, "learned") == "look<|im_end|>sun<|im_end|>"
    assert text(chosen, "silent") == "\n<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\n"
    assert (
        text(chosen, "prompt") == text(rejected, "prompt") == "<|im_start|>user\né?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids(chosen)[: made.shared] == ids(rejected)[: made.shared]
    assert text(rejected) == text(rejected, "prompt") + "look<|im_end|>"
    # a character of two tokens belongs to the last of them
    assert [token.text for token in chosen.tokens if token.text in ("", "é")] == ["", "é"]
    assert {remark.code for remark in made.findings} == {"tools_dropped", "tool_calls_dropped"}


@given(st.text(alphabet="aé日🙂 \n", min_size=1).filter(str.strip))
def test_the_tokens_texts_are_the_text(renderer: Renderer, words: str) -> None:
    made = preview_row(Pair(1, "q", words, "b"), renderer, None)
    assert text(made.sequences[0], "learned") == words + "<|im_end|>"


def test_what_is_cut_is_named(renderer: Renderer) -> None:
    turns = tuple(
        Message(role, word) for role, word in [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    )
    pair = Pair(1, turns, (Message("assistant", "x"),), (Message("assistant", "y"),))
    whole = preview_row(pair, renderer, None)
    length = len(whole.sequences[0].tokens)
    made = preview_row(pair, renderer, length - 1)
    assert made.cut is not None
    assert made.cut.turns == [1, 2]
    assert made.cut.tokens == length - len(made.sequences[0].tokens) > 0
    assert whole.cut is None
    (problem,) = preview_row(pair, renderer, 5).problems
    assert problem.code == "too_long"


def test_rows_that_cannot_be_used_are_shown_with_what_is_wrong(renderer: Renderer, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "f.jsonl", [row("q"), row("q", "same", "same"), {"x": 1}, row("r")])
    made = preview(file, renderer, DPO, lines=[2, 3, 9])
    assert [(it.line, [problem.code for problem in it.problems]) for it in made.rows] == [
        (2, ["equal_answers"]),
        (3, ["unknown_format"]),
    ]
    assert made.missing_lines == [9]
    strips = Renderer(make_tokenizer(tmp_path / "m"), CHAT_TEMPLATE.replace("message.content", "message.content[:1]"))
    (problem,) = preview(write_rows(tmp_path / "g.jsonl", [row("q", "a1", "a2")]), strips, DPO).rows[0].problems
    assert problem.code == "equal_tokens"
    refuses = Renderer(tmp_path / "m", "{{ raise_exception('no') }}")
    (problem,) = preview(file, refuses, DPO).rows[0].problems
    assert (problem.code, "no" in problem.message) == ("not_rendered", True)


def test_rows_of_one_line_are_shown_as_many_as_are_asked_for(renderer: Renderer, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps([row(f"q{number}") for number in range(9)]))
    shown = [len(preview(tmp_path / "f.json", renderer, DPO, lines=[1], rows=rows).rows) for rows in (2, 20)]
    assert shown == [2, 9]


def test_an_example_is_one_sequence(renderer: Renderer, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "f.jsonl", [{"prompt": "q", "completion": "a"}])
    (made,) = preview(file, renderer, ReadOptions("supervised")).rows
    item = renderer.example(Example(1, "q", "a"))
    assert [ids(sequence) for sequence in made.sequences] == [item.tokens]
    assert isinstance(PreviewRow.model_validate_json(made.model_dump_json()), PreviewRow)


@pytest.mark.parametrize(("prompt", "answer"), [(3000, 10), (10, 3000), (3000, 3000), (900, 900), (10, 10)])
def test_a_long_sequence_is_shown_in_parts(renderer: Renderer, prompt: int, answer: int) -> None:
    """Its beginning, its end, and where the answer begins; what is left out is said."""
    pair = Pair(
        1, (Message("user", "why " * prompt),), (Message("assistant", "so " * answer),), (Message("assistant", "no"),)
    )
    item = renderer.pair(pair)
    chosen, rejected = preview_row(pair, renderer, None).sequences
    for sequence, tokens, start in (
        (chosen, item.chosen, item.chosen_prompt),
        (rejected, item.rejected, item.rejected_prompt),
    ):
        shown = list(places(sequence))
        assert ids(sequence) == [tokens[place] for place in shown]
        assert (sequence.length, sequence.learned) == (len(tokens), len(tokens) - start)
        gone = [place for begin, end in sequence.left_out for place in range(begin, end)]
        assert sorted(shown + gone) == list(range(len(tokens)))
        assert {0, start - 1, start, len(tokens) - 1} <= set(shown)
        assert len(shown) <= 4 * WINDOW
        assert not gone or len(shown) >= 2 * WINDOW


def test_a_preview_shows_so_many_tokens_and_no_more(renderer: Renderer, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "f.jsonl", [row("why " * 3000, "so " * 3000)] * 60)
    shown = preview(file, renderer, DPO, rows=60)
    tokens = sum(len(sequence.tokens) for it in shown.rows for sequence in it.sequences)
    assert MOST_TOKENS <= tokens < MOST_TOKENS + 8 * WINDOW
    assert len(shown.rows) + shown.rows_left_out == 60
    assert preview(file, renderer, DPO, rows=60, lines=[*range(1, 61), 99]).missing_lines == [99]


def test_the_date_is_that_of_the_job(tmp_path: Path) -> None:
    """In training, in the preview and in chat, whenever that is."""
    folder = make_tokenizer(tmp_path / "model", chat_template="{{ strftime_now('%d %B %Y %H') }}" + CHAT_TEMPLATE)
    model, training, day = ModelSource(id="m", path=folder), TrainingSpec(max_length=512), date(2024, 2, 29)
    file = write_preference_file(tmp_path / "f.jsonl", 4)
    run = RunSpec(job_id="job", training=training, model=model, training_file=file, today=day)
    renderer = Renderer.for_run(model, training, day)
    shown = preview(file, renderer, DPO, rows=4).rows
    assert text(shown[0].sequences[0]).startswith("29 February 2024 00")
    make_tables(RunSpec.model_validate_json(run.model_dump_json()), tmp_path / "tokens")
    trained = TokenTable(table_path(tmp_path / "tokens", "training"))
    for item, it in zip(trained, shown, strict=True):
        assert item.sequences == [ids(sequence) for sequence in it.sequences]
    assert Renderer.for_run(model, training, date(2024, 3, 1)).prompt("q") != renderer.prompt("q")
