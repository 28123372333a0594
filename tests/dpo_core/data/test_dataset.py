from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from dpo_core.data.dataset import Dataset, load, load_splits, prompt_key, split
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import Message, TokenExample, TokenPair
from dpo_core.data.render import Renderer
from dpo_core.errors import RunError
from dpo_core.spec import Method, ModelSource, RunSpec, TrainingSpec
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
    data = load(write_rows(tmp_path / "f.jsonl", rows), ReadOptions("dpo"), Renderer(folder), None)
    assert [item.line for item in data.items] == [1]
    problems = [(problem.code, problem.lines) for problem in data.problems.findings()]
    assert problems == [("missing_field", [2]), ("empty_answer", [3])]
    assert data.rows == 3


def test_a_row_that_the_template_refuses_is_a_problem(folder: Path, tmp_path: Path) -> None:
    refuses = "{% if messages[0].content == 'r' %}{{ raise_exception('no r') }}{% endif %}"
    template = refuses + "{{ messages | map(attribute='content') | join }}{{ '>' if add_generation_prompt }}"
    rows = [{"prompt": prompt, "chosen": "a b", "rejected": "c d"} for prompt in "qr"]
    data = load(write_rows(tmp_path / "f.jsonl", rows), ReadOptions("dpo"), Renderer(folder, template), None)
    (problem,) = data.problems.findings()
    assert (problem.lines, problem.code) == ([2], "not_rendered")
    assert "no r" in problem.message
    assert [(finding.code, finding.count) for finding in data.findings] == [
        ("generation_prompt_differs", 1),
        ("no_end_of_turn", 1),
    ]


@pytest.mark.parametrize("max_length", [None, 48])
def test_a_pair_that_becomes_equal_is_a_problem(folder: Path, tmp_path: Path, max_length: int | None) -> None:
    """The template strips the thinking, where alone the answers of row 2 differ; uncut and with a shorter prompt."""
    template = "{% for message in messages %}{{ message.content.split('</think>')[-1] + '<|im_end|>' }}{% endfor %}"
    prompt = [{"role": role, "content": "word " * 6} for role in ("user", "assistant", "user")]
    answers = [("<think>a</think>yes", "<think>b</think>no"), ("<think>a</think>yes", "<think>b</think>yes")]
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]
    data = load(write_rows(tmp_path / "f.jsonl", rows), ReadOptions("dpo"), Renderer(folder, template), max_length)
    (problem,) = data.problems.findings()
    assert (problem.code, problem.lines, data.rows) == ("equal_tokens", [2], 2)
    assert "same tokens" in problem.message
    assert [item.line for item in data.items] == [1]
    assert data.truncated_lines == ([] if max_length is None else [1])


def test_dropped_and_truncated_lines(folder: Path) -> None:
    data = load(real_data("orca/validation.jsonl"), ReadOptions("dpo"), Renderer(folder), 2048)
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


GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}
BAD = {"prompt": "q"}


def test_bad_rows_are_named(folder: Path, tmp_path: Path) -> None:
    rows = [GOOD, *[BAD] * 5, GOOD | {"chosen": ""}, *[GOOD] * 3]
    bad = write_rows(tmp_path / "bad.jsonl", list(rows))
    with pytest.raises(RunError) as caught:
        load_splits(run_spec(folder, bad))
    failure = caught.value.failure
    assert (failure.kind, failure.code, failure.line) == ("user", "invalid_training_file", 2)
    assert failure.message.splitlines() == [
        "6 of 10 rows are bad in the training file.",
        "5 rows: a field is missing (lines 2-6). Line 2: `chosen` is missing. Add it, or remove the row.",
        "1 row: empty answer (line 7). The answer in `chosen` is empty. Write one, or remove the row.",
        "To train without them, set `training.skip_bad_rows` to 0.6: the share that may be bad.",
    ]
    with pytest.raises(RunError, match=r"6 of 10 rows are bad in the validation file\.") as caught:
        load_splits(run_spec(folder, write_rows(tmp_path / "good.jsonl", [GOOD]), bad))
    assert caught.value.failure.code == "invalid_validation_file"
    with pytest.raises(RunError, match=r"training file can't be used\. The file has no rows"):
        load_splits(run_spec(folder, write_rows(tmp_path / "empty.jsonl", [])))


def test_as_many_bad_rows_as_allowed_are_skipped(folder: Path, tmp_path: Path) -> None:
    rows = [GOOD | {"prompt": f"q{n}"} if n % 5 else BAD for n in range(50)]
    file = write_rows(tmp_path / "t.jsonl", list(rows))
    train, validation = load_splits(run_spec(folder, file, skip_bad_rows=0.2))
    assert len(train) + len(validation) == 40
    with pytest.raises(RunError, match=r"more than the share of 0\.19 that `training\.skip_bad_rows` allows"):
        load_splits(run_spec(folder, file, skip_bad_rows=0.19))
    with pytest.raises(RunError, match="10 of 50 rows are bad in the validation file"):
        load_splits(run_spec(folder, write_rows(tmp_path / "good.jsonl", [GOOD]), file))


def test_a_file_of_bad_rows_alone_is_refused_whatever_is_allowed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"2 of 2 rows are bad .*") as caught:
        load_splits(run_spec(folder, write_rows(tmp_path / "t.jsonl", [BAD, BAD]), skip_bad_rows=1))
    assert "To train without them" not in str(caught.value)


def test_a_cut_off_file_is_refused_whatever_is_allowed(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl.gz"
    file.write_bytes(gzip.compress(write_preference_file(tmp_path / "t.jsonl", 50).read_bytes())[:-20])
    with pytest.raises(RunError, match=r"can't be used\. The gzip file is cut off: .* Reading ended at line \d+\.$"):
        load_splits(run_spec(folder, file, skip_bad_rows=1))


def test_nothing_fits(folder: Path, tmp_path: Path) -> None:
    few = write_preference_file(tmp_path / "t.jsonl", 3)
    with pytest.raises(RunError, match=r"training file: 3 of its 3 rows .* `training\.max_length`"):
        load_splits(run_spec(folder, few, max_length=8))
    short = write_rows(tmp_path / "short.jsonl", [GOOD])
    with pytest.raises(RunError, match="Nothing is left of the validation file") as caught:
        load_splits(run_spec(folder, short, few, max_length=30))
    assert caught.value.failure.code == "no_validation_rows"


def found(folder: Path, tmp_path: Path, rows: list[object], method: Method = "dpo") -> dict[str, list[int]]:
    data = load(write_rows(tmp_path / "f.jsonl", rows), ReadOptions(method), Renderer(folder), None)
    return {finding.code: finding.lines for finding in data.findings}


def test_repeats_and_contradictions_are_found(folder: Path, tmp_path: Path) -> None:
    opposite = {"prompt": "q", "chosen": "b", "rejected": "a"}
    turns = {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}
    other = [GOOD | {"prompt": "Q"}, GOOD | {"chosen": "c"}]
    rows = [GOOD, *other, GOOD, opposite, opposite, turns]
    assert found(folder, tmp_path, rows) == {"duplicate_row": [4, 7], "opposite_labels": [5, 6]}
    assert found(folder, tmp_path, [opposite, GOOD, opposite]) == {"opposite_labels": [2], "duplicate_row": [3]}
    example = {"prompt": "q", "completion": "a"}
    assert found(folder, tmp_path, [example, example], "supervised") == {"duplicate_row": [2]}


def test_two_turns_of_one_role_are_kept_and_named(folder: Path, tmp_path: Path) -> None:
    user, assistant, system = ({"role": role, "content": role} for role in ("user", "assistant", "system"))
    prompts = [[system, user], [user, user], [user, assistant, assistant, user], [system, system, user]]
    rows: list[object] = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in prompts]
    assert found(folder, tmp_path, rows) == {"repeated_role": [2, 3]}


def test_hh_rlhf_with_its_known_defects() -> None:
    renderer = Renderer(real_data("tokenizers/minimind"))
    data = load(real_data("hh-rlhf/harmless-base_test.jsonl.gz"), ReadOptions("dpo"), renderer, None)
    assert {problem.code: problem.lines for problem in data.problems.findings()} == {
        "empty_answer": [87, 517, 926, 1104],
        "prompts_differ": [1255, 1689, 1951, 1953, 2037],
    }
    assert {finding.code: finding.lines for finding in data.findings} == {"repeated_role": [668, 764, 1320, 1850]}
    assert (data.rows, len(data.items)) == (2312, 2303)


@pytest.mark.parametrize(("name", "rows"), [("orca/validation.jsonl", 284), ("piqa/piqa_validation_pairs.jsonl", 1838)])
def test_real_files_go_in_whole(name: str, rows: int) -> None:
    data = load(real_data(name), ReadOptions("dpo"), Renderer(real_data("tokenizers/minimind")), None)
    assert (len(data.items), data.rows, data.findings) == (rows, rows, [])
