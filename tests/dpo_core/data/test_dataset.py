from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from dpo_core.data.dataset import Limit, load
from dpo_core.data.facts import FileFacts
from dpo_core.data.options import ReadOptions
from dpo_core.data.parallel import CHUNK_BYTES, CHUNKS_ALONE
from dpo_core.data.parts import table_path
from dpo_core.data.records import TokenExample, TokenItem, TokenPair
from dpo_core.data.render import Renderer
from dpo_core.data.run_data import Source, load_splits, open_or_load
from dpo_core.data.token_table import TokenTable
from dpo_core.errors import RunError
from dpo_core.spec import Method, ModelSource, RunSpec, TrainingSpec, WeighedFile
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


def loaded(
    file: Path,
    folder: Path,
    tmp_path: Path,
    *,
    template: str | None = None,
    limit: Limit = None,
    options: ReadOptions = ReadOptions("dpo"),  # noqa: B008 (frozen)
) -> tuple[TokenTable, FileFacts]:
    """The table of a single file, and what is known of it."""
    renderer = partial(Renderer, folder, template)
    table = load([file], options, renderer, limit, tmp_path / "table.safetensors")
    (facts,) = table.facts.files
    return table, facts


def splits(spec: RunSpec, folder: Path) -> tuple[list[TokenItem], list[TokenItem]]:
    """From tables of their own."""
    train, held_out = load_splits(spec, Path(mkdtemp(dir=folder)))
    return list(train), list(held_out)


def test_problems_are_kept_beside_the_items(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q"},
        {"prompt": "r", "chosen": "a", "rejected": ""},
    ]
    table, facts = loaded(write_rows(tmp_path / "f.jsonl", rows), folder, tmp_path)
    assert [item.line for item in table] == [1]
    problems = [(problem.code, problem.lines) for problem in facts.problems.findings()]
    assert problems == [("missing_field", [2]), ("empty_answer", [3])]
    assert (facts.rows, facts.pairs) == (3, 1)


def test_a_row_that_the_template_refuses_is_a_problem(folder: Path, tmp_path: Path) -> None:
    refuses = "{% if messages[0].content == 'r' %}{{ raise_exception('no r') }}{% endif %}"
    template = refuses + "{{ messages | map(attribute='content') | join }}{{ '>' if add_generation_prompt }}"
    rows = [{"prompt": prompt, "chosen": "a b", "rejected": "c d"} for prompt in "qr"]
    _, facts = loaded(write_rows(tmp_path / "f.jsonl", rows), folder, tmp_path, template=template)
    (problem,) = facts.problems.findings()
    assert (problem.lines, problem.code) == ([2], "not_rendered")
    assert "no r" in problem.message
    assert [(finding.code, finding.count) for finding in facts.findings.findings()] == [
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
    file = write_rows(tmp_path / "f.jsonl", rows)
    table, facts = loaded(file, folder, tmp_path, template=template, limit=max_length)
    (problem,) = facts.problems.findings()
    assert (problem.code, problem.lines, facts.rows) == ("equal_tokens", [2], 2)
    assert "same tokens" in problem.message
    assert [item.line for item in table] == [1]
    assert facts.cut("truncated").lines == ([] if max_length is None else [1])


def test_dropped_and_truncated_lines(folder: Path, tmp_path: Path) -> None:
    table, facts = loaded(real_data("orca/validation.jsonl"), folder, tmp_path, limit=2048)
    assert len(table) + facts.cut("dropped").count == facts.rows == 284
    assert max(item.length for item in table) <= 2048
    assert not set(facts.cut("dropped").lines) & {item.line for item in table}


def long_rows(count: int) -> list[object]:
    """Most are short; some need a shorter prompt than they have, some are too long even so."""
    draw = random.Random(1)
    rows: list[object] = []
    for number in range(count):
        turns = [{"role": role, "content": f"{number} " + "word " * draw.choice([1, 1, 12])} for role in ROLES]
        turns[0]["content"] += "word " * draw.choice([1, 1, 40])
        rows.append({"prompt": turns, "chosen": "yes " * draw.choice([1, 1, 60]), "rejected": "no"})
    return rows


ROLES = ("user", "assistant", "user")


def test_a_limit_that_follows_from_the_lengths_cuts_as_one_that_was_given(folder: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "f.jsonl", long_rows(200))
    chosen, facts = loaded(file, folder, tmp_path / "chosen", limit=lambda lengths: min(256, max(lengths)))
    given, expected = loaded(file, folder, tmp_path / "given", limit=256)
    assert list(chosen) == list(given)
    assert [item.line for item in chosen] == sorted(item.line for item in chosen)
    assert chosen.facts.to_json() == given.facts.to_json()
    assert facts.cut("dropped").lines == expected.cut("dropped").lines
    assert (facts.cut("dropped").count > 20, facts.cut("truncated").count > 20) == (True, True)


@pytest.mark.parametrize("limit", [256, lambda lengths: min(256, max(lengths))])
def test_rows_that_stand_in_one_line_are_told_apart(folder: Path, tmp_path: Path, limit: Limit) -> None:
    """As `json.dump` writes a list: one line holds all of it, and means what the same rows on lines of their own do."""
    rows = [*long_rows(60), *[GOOD] * 5, *[GOOD | {"chosen": ""}] * 50]
    lines = write_rows(tmp_path / "lines.jsonl", rows)
    array = tmp_path / "array.json"
    array.write_text(json.dumps(rows))
    table, facts = loaded(array, folder, tmp_path / "array", limit=limit)
    expected, others = loaded(lines, folder, tmp_path / "lines", limit=limit)
    assert [item.sequences for item in table] == [item.sequences for item in expected]
    assert (facts.rows, facts.problems.count) == (others.rows, others.problems.count) == (115, 50)
    for mine, theirs in zip(facts.tallies(), others.tallies(), strict=True):
        assert {it.code: it.count for it in mine.findings()} == {it.code: it.count for it in theirs.findings()}
    assert {it.code: it.count for it in facts.findings.findings()}["duplicate_row"] == 4


def test_bad_rows_of_one_line_are_all_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps([GOOD, BAD] * 10))
    with pytest.raises(RunError, match=r"10 of 20 rows are bad .*\n.*10 rows: a field is missing \(line 1\)"):
        splits(run_spec(folder, tmp_path / "f.json", skip_bad_rows=0.1), tmp_path)


def test_a_weight_takes_the_same_rows_of_one_line_as_of_many(folder: Path, tmp_path: Path) -> None:
    rows = [GOOD | {"prompt": f"q{number}"} for number in range(40)]
    (tmp_path / "array.json").write_text(json.dumps(rows))
    taken = []
    for path in (tmp_path / "array.json", write_rows(tmp_path / "lines.jsonl", list(rows))):
        files = [WeighedFile(id="f", path=path, weight=0.5)]
        spec = run_spec(folder, path, validation_fraction=0).model_copy(update={"training_files": files})
        taken.append(load_splits(spec, Path(mkdtemp(dir=tmp_path)))[0].places.tolist())
    assert taken[0] == taken[1]
    assert len(taken[0]) == 20
    assert taken[0] != list(range(20))


NO_THINKING = (
    "{% for message in messages %}{{ message.content.split('</think>')[-1] + ' ' }}{% endfor %}"
    "{{ '>' if add_generation_prompt }}"
)


def test_facts_are_the_same_however_the_limit_came_about(folder: Path, tmp_path: Path) -> None:
    """Rows of several pairs, of which some are bad whole and others too long; and what is odd about every row."""
    answers = ["<think>a</think>yes", "<think>b</think>yes", "no " * 4, "never " * 30]
    prompt = [{"role": role, "content": "word " * 12} for role in ("user", "user", "assistant", "user")]
    good = {"prompt": prompt, "chosen": "yes", "rejected": "no"}
    scored = {"prompt": prompt, "responses": answers, "scores": [4, 3, 2, 1]}
    file = write_rows(tmp_path / "f.jsonl", [good, scored] * 3)
    load_with = partial(loaded, file, folder, template=NO_THINKING, options=ReadOptions("dpo", scored="all"))
    chosen, facts = load_with(tmp_path / "chosen", limit=lambda _: 100)
    given, _ = load_with(tmp_path / "given", limit=100)
    assert list(chosen) == list(given)
    assert chosen.facts.to_json() == given.facts.to_json()
    assert [(problem.code, problem.lines) for problem in facts.problems.findings()] == [("equal_tokens", [2, 4, 6])]
    found = {finding.code: finding.lines for finding in facts.findings.findings()}
    assert found["repeated_role"] == found["no_end_of_turn"] == [1, 2, 3, 4, 5, 6]
    assert (facts.cut("truncated").count > 0, facts.cut("dropped").count > 0) == (True, True)


def test_a_row_with_a_bad_pair_counts_once_and_keeps_its_others(folder: Path, tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "a ", "a  "], "scores": [4, 1, 3, 2]}
    file = write_rows(tmp_path / "f.jsonl", [row, {"prompt": "q", "chosen": "yes", "rejected": "no"}])
    table, facts = loaded(file, folder, tmp_path / "t", options=ReadOptions("dpo", scored="all"))
    assert (len(table), facts.rows, facts.problems.count) == (4, 2, 1)
    assert [item.line for item in table] == [1, 1, 1, 2]


def test_several_processes_make_the_same_table(folder: Path, tmp_path: Path) -> None:
    rows = long_rows(400)
    for number, row in enumerate(rows):
        assert isinstance(row, dict)
        row["ignored"] = "x" * (CHUNK_BYTES * (CHUNKS_ALONE + 2) // len(rows))
        if number % 50 == 0:
            row["chosen"] = ""
    file = write_rows(tmp_path / "f.jsonl", [*rows, *rows[1:4]])
    tables = [
        load([file], ReadOptions("dpo"), partial(Renderer, folder), lambda _: 256, tmp_path / f"{n}", processes=n)
        for n in (1, 2)
    ]
    assert tables[0].path.read_bytes() == tables[1].path.read_bytes()
    codes = {finding.code for finding in tables[0].facts.files[0].findings.findings()}
    assert "duplicate_row" in codes


def test_a_table_that_is_cut_off_is_no_table(folder: Path, tmp_path: Path) -> None:
    table, _ = loaded(write_preference_file(tmp_path / "t.jsonl", 5), folder, tmp_path)
    table.path.write_bytes(table.path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut off"):
        TokenTable(table.path)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-1], lambda whole: b"", lambda whole: bytes(len(whole))])
def test_a_damaged_table_is_made_again(folder: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    spec = run_spec(folder, write_preference_file(tmp_path / "t.jsonl", 5))
    table = open_or_load(spec, Source.training(spec), 256, tmp_path)
    whole = table.path.read_bytes()
    table.path.unlink()  # `table` has it mapped
    table.path.write_bytes(damage(whole))
    assert open_or_load(spec, Source.training(spec), 256, tmp_path).path.read_bytes() == whole


def test_a_table_that_was_cut_to_another_length_is_made_again(folder: Path, tmp_path: Path) -> None:
    spec = run_spec(folder, write_preference_file(tmp_path / "t.jsonl", 5))
    found = [open_or_load(spec, Source.training(spec), limit, tmp_path).facts.max_length for limit in (256, 200)]
    made = table_path(tmp_path, "training").stat().st_mtime_ns
    found.append(open_or_load(spec, Source.training(spec), lambda lengths: 200, tmp_path).facts.max_length)
    assert table_path(tmp_path, "training").stat().st_mtime_ns == made, "the same length is no reason"
    found.append(open_or_load(spec, Source.training(spec), lambda lengths: 201, tmp_path).facts.max_length)
    assert found == [256, 200, 200, 201]


def test_load_splits_holds_out_or_takes_the_validation_file(folder: Path, tmp_path: Path) -> None:
    training = write_preference_file(tmp_path / "t.jsonl", 40)
    train, validation = splits(run_spec(folder, training), tmp_path)
    assert (len(train), len(validation)) == (32, 8)
    assert all(isinstance(item, TokenPair) for item in train + validation)
    given = write_preference_file(tmp_path / "v.jsonl", 5, seed=1)
    train, validation = splits(run_spec(folder, training, given), tmp_path)
    assert (len(train), len(validation)) == (40, 5)


def test_load_splits_of_supervised_rows(folder: Path, tmp_path: Path) -> None:
    spec = run_spec(folder, write_supervised_file(tmp_path / "t.jsonl", 10), method="supervised", validation_fraction=0)
    train, validation = splits(spec, tmp_path)
    assert (len(train), len(validation)) == (10, 0)
    assert all(isinstance(item, TokenExample) for item in train)


GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}
BAD = {"prompt": "q"}


def test_bad_rows_are_named(folder: Path, tmp_path: Path) -> None:
    rows = [GOOD, *[BAD] * 5, GOOD | {"chosen": ""}, *[GOOD] * 3]
    bad = write_rows(tmp_path / "bad.jsonl", list(rows))
    with pytest.raises(RunError) as caught:
        splits(run_spec(folder, bad), tmp_path)
    failure = caught.value.failure
    assert (failure.kind, failure.code, failure.line) == ("user", "invalid_training_file", 2)
    assert failure.message.splitlines() == [
        "6 of 10 rows are bad in the training file.",
        "5 rows: a field is missing (lines 2-6). Line 2: `chosen` is missing; the row has `prompt`. Add it, say in "
        "`columns` what it is called, or remove the row.",
        "1 row: empty answer (line 7). The answer in `chosen` is empty. Write one, or remove the row.",
        "To train without them, set `training.skip_bad_rows` to 0.6 (`dpo submit --skip-bad-rows 0.6`): the share that "
        "may be bad.",
    ]
    with pytest.raises(RunError, match=r"6 of 10 rows are bad in the validation file\.") as caught:
        splits(run_spec(folder, write_rows(tmp_path / "good.jsonl", [GOOD]), bad), tmp_path)
    assert caught.value.failure.code == "invalid_validation_file"
    with pytest.raises(RunError, match=r"training file can't be used\. The file has no rows"):
        splits(run_spec(folder, write_rows(tmp_path / "empty.jsonl", [])), tmp_path)


def test_as_many_bad_rows_as_allowed_are_skipped(folder: Path, tmp_path: Path) -> None:
    rows = [GOOD | {"prompt": f"q{n}"} if n % 5 else BAD for n in range(50)]
    file = write_rows(tmp_path / "t.jsonl", list(rows))
    train, validation = splits(run_spec(folder, file, skip_bad_rows=0.2), tmp_path)
    assert len(train) + len(validation) == 40
    with pytest.raises(RunError, match=r"more than the share of 0\.19 that `training\.skip_bad_rows` allows"):
        splits(run_spec(folder, file, skip_bad_rows=0.19), tmp_path)
    with pytest.raises(RunError, match="10 of 50 rows are bad in the validation file"):
        splits(run_spec(folder, write_rows(tmp_path / "good.jsonl", [GOOD]), file), tmp_path)


def test_a_file_of_bad_rows_alone_is_refused_whatever_is_allowed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"2 of 2 rows are bad .*") as caught:
        splits(run_spec(folder, write_rows(tmp_path / "t.jsonl", [BAD, BAD]), skip_bad_rows=1), tmp_path)
    assert "To train without them" not in str(caught.value)


def test_a_cut_off_file_is_refused_whatever_is_allowed(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl.gz"
    file.write_bytes(gzip.compress(write_preference_file(tmp_path / "t.jsonl", 50).read_bytes())[:-20])
    with pytest.raises(RunError, match=r"can't be used\. The gzip file is cut off: .* Reading ended at line \d+\.$"):
        splits(run_spec(folder, file, skip_bad_rows=1), tmp_path)


def test_nothing_fits(folder: Path, tmp_path: Path) -> None:
    few = write_preference_file(tmp_path / "t.jsonl", 3)
    with pytest.raises(RunError, match=r"training file: 3 of its 3 rows .* `training\.max_length`"):
        splits(run_spec(folder, few, max_length=8), tmp_path)
    short = write_rows(tmp_path / "short.jsonl", [GOOD])
    with pytest.raises(RunError, match="Nothing is left of the validation file") as caught:
        splits(run_spec(folder, short, few, max_length=30), tmp_path)
    assert caught.value.failure.code == "no_validation_rows"


def found(folder: Path, tmp_path: Path, rows: list[object], method: Method = "dpo") -> dict[str, list[int]]:
    _, facts = loaded(write_rows(tmp_path / "f.jsonl", rows), folder, tmp_path, options=ReadOptions(method))
    return {finding.code: finding.lines for finding in facts.findings.findings()}


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


def test_hh_rlhf_with_its_known_defects(tmp_path: Path) -> None:
    file, model = real_data("hh-rlhf/harmless-base_test.jsonl.gz"), real_data("tokenizers/minimind")
    table, facts = loaded(file, model, tmp_path)
    assert {problem.code: problem.lines for problem in facts.problems.findings()} == {
        "empty_answer": [87, 517, 926, 1104],
        "prompts_differ": [1255, 1689, 1951, 1953, 2037],
    }
    assert {finding.code: finding.lines for finding in facts.findings.findings()} == {
        "repeated_role": [668, 764, 1320, 1850]
    }
    assert (facts.rows, len(table)) == (2312, 2303)


@pytest.mark.parametrize(("name", "rows"), [("orca/validation.jsonl", 284), ("piqa/piqa_validation_pairs.jsonl", 1838)])
def test_real_files_go_in_whole(tmp_path: Path, name: str, rows: int) -> None:
    table, facts = loaded(real_data(name), real_data("tokenizers/minimind"), tmp_path)
    assert (len(table), facts.rows, facts.findings.findings()) == (rows, rows, [])


def weighed(tmp_path: Path, **weights: float) -> RunSpec:
    """Files of ten pairs each, by name."""
    files = []
    for seed, (name, weight) in enumerate(weights.items()):
        path = write_preference_file(tmp_path / f"{name}.jsonl", 10, seed=seed)
        files.append(WeighedFile(id=f"file-{name}", path=path, weight=weight))
    return run_spec(tmp_path / "model", files[0].path, validation_fraction=0).model_copy(
        update={"training_files": files}
    )


def test_a_weight_says_how_often_a_pair_is_seen(folder: Path, tmp_path: Path) -> None:
    spec = weighed(tmp_path, a=2.5, b=1, c=0.3).model_copy(update={"model": ModelSource(id="tiny", path=folder)})
    train, held_out = load_splits(spec, tmp_path / "tokens")
    assert len(held_out) == 0
    known = train.table.rows["known"]
    times = np.bincount(train.places, minlength=30)
    assert [int(times[known["file"] == file].sum()) for file in range(3)] == [25, 10, 3]
    assert [sorted(set(times[known["file"] == file].tolist())) for file in range(3)] == [[2, 3], [1], [0, 1]]
    again, _ = load_splits(spec, tmp_path / "tokens")
    assert again.places.tolist() == train.places.tolist()
    other = spec.model_copy(update={"training": spec.training.model_copy(update={"seed": 1})})
    assert load_splits(other, tmp_path / "tokens")[0].places.tolist() != train.places.tolist()


def test_weights_that_leave_nothing_are_refused(folder: Path, tmp_path: Path) -> None:
    spec = weighed(tmp_path, a=0.01, b=0.01).model_copy(update={"model": ModelSource(id="tiny", path=folder)})
    with pytest.raises(RunError, match="leave no row to train on"):
        load_splits(spec, tmp_path / "tokens")


def test_a_bad_row_of_several_files_is_named_with_its_file(folder: Path, tmp_path: Path) -> None:
    spec = weighed(tmp_path, a=1, b=1).model_copy(update={"model": ModelSource(id="tiny", path=folder)})
    with open(spec.training_files[1].path, "a") as file:
        file.write("{}\n")
    with pytest.raises(RunError, match=r"1 of 11 rows is bad in the training file file-b\.") as caught:
        load_splits(spec, tmp_path / "tokens")
    assert caught.value.failure.line == 11
