from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

import pytest

from dpo_core.data.run_data import load_splits
from dpo_core.errors import RunError
from dpo_core.model_folder import check_lora_targets, model_facts, parameter_count
from dpo_core.prepare import prepare, run
from dpo_core.prepare_report import Prepared, read_prepared
from dpo_core.run_directory import RunDirectory, read_lines
from dpo_core.spec import LoraSpec, ModelSource, RunSpec, TrainingSpec, WeighedFile
from tests.makers import make_tokenizer, write_preference_file, write_rows, write_supervised_file


def spec_of(model: Path, training_file: Path, validation_file: Path | None = None, **training: object) -> RunSpec:
    return RunSpec(
        job_id="job",
        training=TrainingSpec.model_validate(training),
        model=ModelSource(id="tiny", path=model),
        training_file=training_file,
        validation_file=validation_file,
        ranks=2,
    )


def prepared_of(spec: RunSpec, folder: Path) -> Prepared:
    """With tables of its own."""
    return prepare(spec, Path(mkdtemp(dir=folder)))


def directory_of(path: Path, spec: RunSpec) -> RunDirectory:
    directory = RunDirectory(path)
    directory.create(spec)
    return directory


def events(directory: RunDirectory) -> list[dict[str, object]]:
    return [event for event, _ in read_lines(directory.events_file, 0)]


def test_the_trainer_sees_the_rows_that_were_counted(tiny_model: Path, tmp_path: Path) -> None:
    spec = spec_of(tiny_model, write_preference_file(tmp_path / "t.jsonl", 400), epochs=3)
    prepared = prepare(spec, tmp_path / "tokens")
    assert "auto" not in prepared.training.model_dump().values()
    train, validation = load_splits(spec.model_copy(update={"training": prepared.training}), tmp_path / "tokens")
    assert (len(train), len(validation)) == (prepared.report.train_items, prepared.report.validation_items) == (360, 40)
    assert prepared.training.batch_size == 16
    assert prepared.total_steps == 3 * 23
    tokens = sum(len(sequence) for item in train for sequence in item.sequences)
    assert prepared.trained_tokens_estimate == 3 * tokens
    assert prepared.report.findings == []


def test_a_run_that_succeeds(tiny_model: Path, tmp_path: Path) -> None:
    validation = write_supervised_file(tmp_path / "v.jsonl", 7, seed=1)
    spec = spec_of(
        tiny_model, write_supervised_file(tmp_path / "t.jsonl", 40), validation, method="supervised", max_steps=5
    )
    directory = directory_of(tmp_path / "run", spec)
    assert run(directory.path) == 0
    status, prepared = directory.status(), read_prepared(directory)
    assert status is not None
    assert (status.state, status.total_steps) == ("succeeded", 5)
    assert (prepared.report.train_items, prepared.report.validation_items) == (40, 7)
    assert [event["code"] for event in events(directory)] == ["data_prepared"]


def test_a_table_that_is_there_is_used_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    spec = spec_of(tiny_model, write_preference_file(tmp_path / "t.jsonl", 40))
    first, second = directory_of(tmp_path / "first", spec), directory_of(tmp_path / "second", spec)
    assert run(first.path) == 0
    shutil.copytree(first.tokens, second.tokens)
    spec.training_file.unlink()
    assert run(second.path) == 0
    assert read_prepared(second) == read_prepared(first)
    told = ["data_prepared", "nothing_held_out", "unusual_value"]
    assert [event["code"] for event in events(first)] == told
    assert [event["code"] for event in events(second)] == ["tokens_found", *told]


def test_validation_prompts_that_are_trained_on_are_counted_and_told(tiny_model: Path, tmp_path: Path) -> None:
    rows: list[object] = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(20)]
    validation = write_rows(tmp_path / "v.jsonl", [{"prompt": "new", "chosen": "a", "rejected": "b"}, *rows[:2]])
    directory = directory_of(tmp_path / "run", spec_of(tiny_model, write_rows(tmp_path / "t.jsonl", rows), validation))
    assert run(directory.path) == 0
    (found,) = read_prepared(directory).report.findings
    assert (found.code, found.file, found.count, found.lines) == ("prompt_in_training", "validation", 2, [2, 3])
    event, few_steps = events(directory)[-2:]
    assert (event["level"], event["code"]) == ("warn", "prompt_in_training")
    assert few_steps["code"] == "unusual_value"
    assert str(event["message"]).startswith("2 rows (lines 2-3 of the validation file): The validation file asks what")


def test_several_files_are_reported_by_name_and_counted_by_weight(tiny_model: Path, tmp_path: Path) -> None:
    rows: list[object] = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(200)]
    files = [
        WeighedFile(id="file-a", path=write_rows(tmp_path / "a.jsonl", rows), weight=2.5),
        WeighedFile(id="file-b", path=write_rows(tmp_path / "b.jsonl", [rows[7], {"prompt": "q"}]), weight=3),
    ]
    spec = spec_of(tiny_model, files[1].path, skip_bad_rows=0.5, validation_fraction=0, batch_size=1)
    directory = directory_of(tmp_path / "run", spec.model_copy(update={"training_files": files}))
    assert run(directory.path) == 0
    prepared = read_prepared(directory)
    report = prepared.report
    assert [(file.name, file.weight, file.rows, file.pairs, file.bad) for file in report.files] == [
        ("file-a", 2.5, 200, 200, 0),
        ("file-b", 3.0, 2, 1, 1),
    ]
    assert (report.rows, report.pairs, report.train_items, prepared.total_steps) == (202, 201, 503, 503)
    assert [(it.name, it.code, it.lines) for it in report.problems] == [("file-b", "missing_field", [2])]
    assert [(it.name, it.code, it.lines) for it in report.findings] == [("file-b", "duplicate_row", [1])]
    messages = [str(event["message"]) for event in events(directory)]
    assert "Left out of the training file file-b, as" in messages[1]
    assert (
        "1 row repeats an earlier row (line 1 of file-b). Line 1 repeats an earlier row (line 8 of file-a)"
        in messages[2]
    )


def test_a_bad_row_fails_the_run_by_its_number(tiny_model: Path, tmp_path: Path) -> None:
    rows: list[object] = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(20)]
    rows[16] = {"prompt": "q", "chosen": "a", "rejected": "a"}
    directory = directory_of(tmp_path / "run", spec_of(tiny_model, write_rows(tmp_path / "t.jsonl", rows)))
    assert run(directory.path) == 1
    status = directory.status()
    assert status is not None
    assert status.failure is not None
    assert (status.state, status.failure.kind, status.failure.code) == ("failed", "user", "invalid_training_file")
    assert status.failure.line == 17
    assert status.failure.message.startswith(
        "1 of 20 rows is bad in the training file.\n1 row: the two answers are equal"
    )
    assert not directory.prepared_file.exists()


def test_a_bad_validation_file_says_which_file(tiny_model: Path, tmp_path: Path) -> None:
    validation = write_supervised_file(tmp_path / "v.jsonl", 2)
    with pytest.raises(RunError, match="validation file") as caught:
        prepared_of(spec_of(tiny_model, write_preference_file(tmp_path / "t.jsonl", 20), validation), tmp_path)
    assert caught.value.failure.code == "invalid_validation_file"


def test_dropped_rows_are_events(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a" * (10 + 40 * (n % 2)), "rejected": "b"} for n in range(20)]
    spec = spec_of(tiny_model, write_rows(tmp_path / "t.jsonl", rows), max_length=60, batch_size=4)
    directory = directory_of(tmp_path / "run", spec)
    assert run(directory.path) == 0
    report = read_prepared(directory).report
    assert (report.rows, report.pairs, report.dropped, report.dropped_lines[:2]) == (20, 10, 10, [2, 4])
    dropped = events(directory)[1]
    assert (dropped["code"], dropped["level"]) == ("rows_dropped", "warn")
    assert "10 rows (lines 2, 4, 6, 8, 10, 12, 14, 16, 18, 20)" in str(dropped["message"])


def test_skipped_rows_are_in_the_report_and_an_event(tiny_model: Path, tmp_path: Path) -> None:
    rows: list[object] = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(300)]
    rows[::2] = [{"prompt": "q", "chosen": "a", "rejected": " "}] * 150
    rows[1] = {"prompt": "q"}
    validation = write_rows(tmp_path / "v.jsonl", rows[:4])
    spec = spec_of(tiny_model, write_rows(tmp_path / "t.jsonl", rows), validation, skip_bad_rows=0.75)
    directory = directory_of(tmp_path / "run", spec)
    assert run(directory.path) == 0
    report = read_prepared(directory).report
    assert (report.rows, report.pairs, report.bad) == (300, 149, 151)
    empty, missing, *of_validation = report.problems
    assert (empty.file, empty.code, empty.title, empty.count) == ("training", "empty_answer", "empty answer", 150)
    assert empty.lines == list(range(1, 201, 2))
    assert (missing.code, missing.count, missing.lines) == ("missing_field", 1, [2])
    assert [(it.file, it.count, it.lines) for it in of_validation] == [
        ("validation", 2, [1, 3]),
        ("validation", 1, [2]),
    ]
    _, skipped, skipped_in_validation, _leak, _few_steps = events(directory)
    assert (skipped["code"], skipped["level"]) == ("bad_rows_skipped", "warn")
    assert "21, 23 and 138 more). Line 1: The answer in `rejected` is empty." in str(skipped["message"])
    assert skipped_in_validation["data"] == {
        "file": "validation",
        "name": None,
        "count": 3,
        "problems": [
            {"code": "empty_answer", "count": 2, "lines": [1, 3]},
            {"code": "missing_field", "count": 1, "lines": [2]},
        ],
    }


def test_findings_and_warnings_are_events(tiny_model: Path, tmp_path: Path) -> None:
    spec = spec_of(
        tiny_model,
        write_preference_file(tmp_path / "t.jsonl", 20),
        chat_template="{{ messages | map(attribute='content') | join }}{{ '>' if add_generation_prompt }}",
        learning_rate=0.1,
    )
    directory = directory_of(tmp_path / "run", spec)
    assert run(directory.path) == 0
    codes = [event["code"] for event in events(directory)]
    assert codes[:2] == ["data_prepared", "nothing_held_out"]
    assert codes[2:] == ["generation_prompt_differs", "no_end_of_turn", "unusual_value", "unusual_value"]


def test_too_few_rows_to_hold_some_out_is_an_event(tiny_model: Path, tmp_path: Path) -> None:
    directory = directory_of(tmp_path / "run", spec_of(tiny_model, write_preference_file(tmp_path / "t.jsonl", 20)))
    assert run(directory.path) == 0
    (said,) = [event["message"] for event in events(directory) if event["code"] == "nothing_held_out"]
    assert "a tenth of 20 rows would be too few" in said
    assert "Give a validation file" in said


def test_repeated_rows_are_told_in_a_sentence(tiny_model: Path, tmp_path: Path) -> None:
    file = write_preference_file(tmp_path / "t.jsonl", 20)
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*rows, rows[3], rows[5]]))
    directory = directory_of(tmp_path / "run", spec_of(tiny_model, file))
    assert run(directory.path) == 0
    (said,) = [event["message"] for event in events(directory) if event["code"] == "duplicate_row"]
    assert said.startswith("2 rows repeat an earlier row (lines 21-22). Line 21 repeats an earlier row (line 4)")


def test_a_missing_file_is_no_fault_of_the_user(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = directory_of(tmp_path / "run", spec_of(tiny_model, tmp_path / "gone.jsonl"))
    assert run(directory.path) == 1
    status = directory.status()
    assert status is not None
    assert status.failure is not None
    assert status.failure.kind == "infrastructure"
    assert "gone.jsonl" in capsys.readouterr().err


def test_a_tokenizer_of_another_model(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_tokenizer(tmp_path / "model")
    config = json.loads((tiny_model / "config.json").read_text()) | {"vocab_size": 100}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").symlink_to(tiny_model / "model.safetensors")
    with pytest.raises(RunError, match="knows only 100 tokens"):
        prepared_of(spec_of(folder, write_preference_file(tmp_path / "t.jsonl", 20)), tmp_path)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_prj"], r"no module of tiny is named 'q_prj'\. Did you mean `q_proj`\? There are down_proj, "),
        (["q_proj", "query_key_value"], "no module of tiny is named 'query_key_value'"),
        (["norm"], "named 'norm'"),  # a module, but none that can have an adapter
        (["proj"], "named 'proj'"),  # the end of a name, but not of whole parts
    ],
)
def test_a_lora_target_that_matches_nothing(tiny_model: Path, tmp_path: Path, targets: list[str], said: str) -> None:
    file = write_preference_file(tmp_path / "t.jsonl", 20)
    with pytest.raises(RunError, match=said) as caught:
        prepared_of(spec_of(tiny_model, file, lora={"target_modules": targets}), tmp_path)
    failure = caught.value.failure
    assert (failure.kind, failure.code) == ("user", "lora_target_modules")
    assert failure.param == "training.lora.target_modules"


def test_lora_targets_by_their_last_part_or_more(tiny_model: Path, tmp_path: Path) -> None:
    file = write_preference_file(tmp_path / "t.jsonl", 20)
    targets = ["q_proj", "mlp.up_proj", "model.layers.0.self_attn.v_proj", "lm_head"]
    assert prepared_of(spec_of(tiny_model, file, lora={"target_modules": targets}), tmp_path).training.lora is not None
    adapter = ModelSource(id="adapter", path=tmp_path, base_path=tiny_model)
    check_lora_targets(adapter, LoraSpec(target_modules=["its own stay"]))


def test_a_max_length_below_the_shortest_row(tiny_model: Path, tmp_path: Path) -> None:
    """The least length that is named is the least that there is."""
    file = write_preference_file(tmp_path / "t.jsonl", 20)
    with pytest.raises(RunError, match=r"20 of its 20 rows are longer than max_length \(8 tokens\)") as caught:
        prepared_of(spec_of(tiny_model, file, max_length=8), tmp_path)
    assert (caught.value.failure.code, caught.value.failure.param) == ("no_training_rows", "training.max_length")
    said = re.search(r"The shortest, line (\d+), needs (\d+) tokens: raise `training.max_length`", str(caught.value))
    assert said is not None
    line, least = map(int, said.groups())
    with pytest.raises(RunError, match="Nothing is left"):
        prepared_of(spec_of(tiny_model, file, max_length=least - 1), tmp_path)
    report = prepared_of(spec_of(tiny_model, file, max_length=least), tmp_path).report
    assert report.pairs >= 1
    assert line not in report.dropped_lines


def test_model_facts(tiny_model: Path, tmp_path: Path) -> None:
    facts = model_facts(ModelSource(id="tiny", path=tiny_model))
    # embeddings and head 2·264·32; a layer 32·(32+16+16+32) + 3·32·64 + 2·32; the last norm 32
    assert facts.parameter_count == 2 * 264 * 32 + 2 * (32 * 96 + 3 * 32 * 64 + 64) + 32
    assert (facts.vocabulary_size, facts.context_length) == (264, 4096)
    assert model_facts(ModelSource(id="adapter", path=tmp_path, base_path=tiny_model)) == facts


def test_damaged_model_folders(tiny_model: Path, tmp_path: Path) -> None:
    model = ModelSource(id="broken", path=tmp_path)
    with pytest.raises(RunError, match="names no vocab_size"):
        model_facts(model)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(RunError, match="not valid JSON"):
        model_facts(model)
    with pytest.raises(RunError, match=r"no model\.safetensors"):
        parameter_count(tmp_path)
    weights = (tiny_model / "model.safetensors").read_bytes()
    for damaged in (b"", weights[:100], b"\xff" * 16, b"\x02" + bytes(7) + b"[]"):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(RunError, match="cut off"):
            parameter_count(tmp_path)


def test_sharded_weights_are_added_up(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).symlink_to(tiny_model / "model.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert parameter_count(tmp_path) == 2 * parameter_count(tiny_model)


def test_as_a_program_it_loads_no_torch(tiny_model: Path, tmp_path: Path) -> None:
    directory = directory_of(tmp_path / "run", spec_of(tiny_model, write_preference_file(tmp_path / "t.jsonl", 20)))
    program = (
        "import sys; from dpo_core.prepare import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'deepspeed', 'peft'} & sys.modules.keys(); sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", program, str(directory.path)], check=True, timeout=60)
    status = directory.status()
    assert status is not None
    assert status.state == "succeeded"
    assert (directory.processes / "prepare.json").exists()
    assert subprocess.run([sys.executable, "-m", "dpo_core.prepare"], check=False, timeout=60).returncode == 2


def test_sigterm_stops_it(tiny_model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.jsonl")  # nobody writes to it, so reading it lasts
    directory = directory_of(tmp_path / "run", spec_of(tiny_model, tmp_path / "t.jsonl"))
    process = subprocess.Popen([sys.executable, "-m", "dpo_core.prepare", str(directory.path)])
    deadline = time.monotonic() + 60
    while directory.status() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    status = directory.status()
    assert status is not None
    assert status.state == "stopped"
