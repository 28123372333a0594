from __future__ import annotations

from pathlib import Path

import pytest

from dpo_core.dataset import Dataset, load, load_splits, prompt_key, split
from dpo_core.errors import RunError
from dpo_core.records import Message, TokenExample, TokenPair
from dpo_core.render import Renderer
from dpo_core.spec import ModelSource, RunSpec, TrainingSpec
from tests.makers import make_tokenizer, real_data, write_preference_file, write_rows, write_supervised_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("model"))


def run_spec(folder: Path, training_file: Path, validation_file: Path | None = None, **training: object) -> RunSpec:
    spec = TrainingSpec.model_validate({"max_length": 256, "validation_fraction": 0.2} | training)
    model = ModelSource(id="tiny", path=folder)
    return RunSpec(
        job_id="job", training=spec, model=model, training_file=training_file, validation_file=validation_file
    )


def test_problems_are_kept_beside_the_items(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q"},
        {"prompt": "r", "chosen": "a", "rejected": ""},
    ]
    data = load(write_rows(tmp_path / "f.jsonl", rows), "dpo", Renderer(folder), None)
    assert [item.line for item in data.items] == [1]
    assert [(problem.line, problem.code) for problem in data.problems] == [(2, "missing_field"), (3, "empty_answer")]
    assert data.rows == 3


def test_a_row_that_the_template_refuses_is_a_problem(folder: Path, tmp_path: Path) -> None:
    template = "{% if messages[0].content == 'r' %}{{ raise_exception('no r') }}{% endif %}{{ messages[-1].content }}"
    rows = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in "qr"]
    data = load(write_rows(tmp_path / "f.jsonl", rows), "dpo", Renderer(folder, template), None)
    (problem,) = data.problems
    assert (problem.line, problem.code) == (2, "not_rendered")
    assert "no r" in problem.message
    assert [(finding.code, finding.count) for finding in data.findings] == [
        ("generation_prompt_differs", 1),
        ("no_end_of_turn", 1),
        ("turn_changed", 1),
    ]


def test_dropped_and_truncated_lines(folder: Path) -> None:
    data = load(real_data("orca/validation.jsonl"), "dpo", Renderer(folder), 2048)
    assert len(data.items) + len(data.dropped_lines) == data.rows == 284
    assert max(item.length for item in data.items) <= 2048
    assert not set(data.dropped_lines) & {item.line for item in data.items}


def dataset(prompts: str) -> Dataset:
    items = [TokenExample(line, [1, 2], 1) for line in range(len(prompts))]
    return Dataset(items=list(items), keys=[prompt_key(prompt) for prompt in prompts])


def test_a_prompt_is_on_one_side_only() -> None:
    data = dataset("abcdefghij" * 10)
    train, validation = split(data, 0.3, seed=1)
    assert (len(train), len(validation)) == (70, 30)
    sides = [{data.keys[item.line] for item in side} for side in (train, validation)]
    assert not sides[0] & sides[1]


def test_the_split_depends_on_seed_and_prompts_alone() -> None:
    forward, backward = dataset("abcdefghijklmnopqrstuvwxyz"), dataset("zyxwvutsrqponmlkjihgfedcba")
    held_out = {forward.keys[item.line] for item in split(forward, 0.25, seed=3)[1]}
    assert held_out == {backward.keys[item.line] for item in split(backward, 0.25, seed=3)[1]}
    assert held_out != {forward.keys[item.line] for item in split(forward, 0.25, seed=4)[1]}
    assert len(held_out) == round(0.25 * 26)


def test_something_is_always_left_to_train_on() -> None:
    assert [len(side) for side in split(dataset("aaaa"), 0.5, seed=0)] == [4, 0]
    assert [len(side) for side in split(dataset("ab"), 0.99, seed=0)] == [1, 1]
    assert [len(side) for side in split(dataset("ab"), 0.0, seed=0)] == [2, 0]


def test_prompts_are_compared_without_case_and_spacing() -> None:
    assert prompt_key("What  is\n2+2?") == prompt_key(" what is 2+2? ")
    assert prompt_key("a") == prompt_key((Message("user", "A"),))
    assert prompt_key("a") != prompt_key((Message("system", "a"),))
    assert prompt_key("ab") != prompt_key("a b")


def test_load_splits_holds_out_or_takes_the_validation_file(folder: Path, tmp_path: Path) -> None:
    training = write_preference_file(tmp_path / "t.jsonl", 40)
    train, validation = load_splits(run_spec(folder, training))
    assert (len(train), len(validation)) == (32, 8)
    assert all(isinstance(item, TokenPair) for item in train + validation)
    given = write_preference_file(tmp_path / "v.jsonl", 5, seed=1)
    train, validation = load_splits(run_spec(folder, training, given))
    assert (len(train), len(validation)) == (40, 5)


def test_load_splits_of_supervised_rows(folder: Path, tmp_path: Path) -> None:
    spec = run_spec(folder, write_supervised_file(tmp_path / "t.jsonl", 10), method="supervised", validation_fraction=0)
    train, validation = load_splits(spec)
    assert (len(train), len(validation)) == (10, 0)
    assert all(isinstance(item, TokenExample) for item in train)


def test_bad_rows_are_named(folder: Path, tmp_path: Path) -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    bad = write_rows(tmp_path / "bad.jsonl", [good, *[{"prompt": "q"}] * 5])
    with pytest.raises(
        RunError, match=r"5 of 6 rows are bad in the training file; line 2: .* \(and 2 more\)$"
    ) as caught:
        load_splits(run_spec(folder, bad))
    failure = caught.value.failure
    assert (failure.kind, failure.code, failure.line) == ("user", "invalid_training_file", 2)
    with pytest.raises(RunError, match=r"5 of 6 rows are bad in the validation file") as caught:
        load_splits(run_spec(folder, write_rows(tmp_path / "good.jsonl", [good]), bad))
    assert caught.value.failure.code == "invalid_validation_file"
    with pytest.raises(RunError, match="training file is empty"):
        load_splits(run_spec(folder, write_rows(tmp_path / "empty.jsonl", [])))


def test_nothing_fits(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"All 3 rows .* `training\.max_length`"):
        load_splits(run_spec(folder, write_preference_file(tmp_path / "t.jsonl", 3), max_length=8))
