"""A table's key changes with everything that its bytes depend on, and with nothing else."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import pytest

from dpo_core.data import table_key
from dpo_core.data.parts import Part
from dpo_core.data.table_key import CODE, MODEL_FILES, SOFTWARE, table_keys
from dpo_core.spec import ModelSource, RunSpec, TrainingSpec, WeighedFile


@pytest.fixture
def run(tmp_path: Path) -> RunSpec:
    """An adapter without a tokenizer on a base that has every file."""
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    adapter.mkdir()
    for name in MODEL_FILES:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("{}")
    model = ModelSource(id="tiny", path=adapter, base_path=base)
    return RunSpec(job_id="job", training=TrainingSpec(), model=model, training_file=tmp_path / "t.jsonl")


def keys(run: RunSpec, training: tuple[str, ...] = ("a",), validation: str | None = "v", **spec: object) -> list[str]:
    """Of the training and of the validation table; `spec` are fields of the training spec."""
    asked = run.training.model_copy(update=spec)
    made: dict[Part, str] = table_keys(run.model_copy(update={"training": asked}), training, validation)
    return list(made.values())


def test_the_same_asks_for_the_same(run: RunSpec) -> None:
    other = run.model_copy(update={"job_id": "other", "training_file": Path("elsewhere")})
    assert keys(run) == keys(other) == keys(run, seed=7, learning_rate=1e-3, skip_bad_rows=0.5)
    assert len({*keys(run)}) == 2
    assert keys(run)[:1] == keys(run, validation=None)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_file_of_the_model(run: RunSpec, name: str) -> None:
    before = keys(run)
    assert run.model.base_path is not None
    (run.model.base_path / name).write_text('{"other": 1}')
    changed = keys(run)
    (run.model.base_path / name).unlink()
    assert_all_differ(before, changed, keys(run))


def test_the_folder_that_the_tokenizer_comes_from_counts_alone(run: RunSpec) -> None:
    """And of the base its config, which names the context."""
    before, base = keys(run), run.model.base_path
    assert base is not None
    (run.model.path / "chat_template.jinja").write_text("without a tokenizer nobody reads it")
    assert keys(run) == before
    shutil.copytree(base, run.model.path, dirs_exist_ok=True)
    own = keys(run)
    (base / "tokenizer.json").write_text("other")
    assert keys(run) == own
    (base / "config.json").write_text('{"max_position_embeddings": 64}')
    assert_all_differ(own, keys(run))


@pytest.mark.parametrize(
    "spec",
    [
        {"method": "supervised"},
        {"columns": {"prompt": "question"}},
        {"scored_answers": "all"},
        {"chat_template": "{{ messages }}"},
        {"chat_template_kwargs": {"thinking": False}},
        {"max_length": 64},
    ],
    ids=lambda spec: next(iter(spec)),
)
def test_a_field_of_the_spec(run: RunSpec, spec: dict[str, object]) -> None:
    assert_all_differ(keys(run), keys(run, **spec))


def test_the_data(run: RunSpec) -> None:
    """With an automatic length the validation table depends on the training files, otherwise not."""
    assert_all_differ(keys(run), keys(run, ("b",)), keys(run, ("a", "b")), keys(run, ("b", "a")))
    (training, validation), (same, other) = keys(run), keys(run, validation="w")
    assert (training == same, validation == other) == (True, False)
    assert keys(run, ("a",), max_length=64)[1] == keys(run, ("b",), max_length=64)[1]


def test_what_the_files_are_called(run: RunSpec, tmp_path: Path) -> None:
    def named(*names: str) -> RunSpec:
        files = [WeighedFile(id=name, path=tmp_path / name) for name in names]
        return run.model_copy(update={"training_files": files})

    assert_all_differ(keys(named("a", "b"), ("1", "2")), keys(named("a", "c"), ("1", "2")))


def test_the_date_of_the_run_counts_where_a_template_writes_it(run: RunSpec) -> None:
    def on_two_days(**spec: object) -> list[list[str]]:
        return [keys(run.model_copy(update={"today": date(2026, 1, day)}), **spec) for day in (1, 2)]

    first, second = on_two_days()
    assert first == second
    assert_all_differ(*on_two_days(chat_template="{{ strftime_now('%Y') }}"))


@pytest.mark.parametrize("name", SOFTWARE)
def test_a_library(run: RunSpec, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before, version = keys(run), table_key.version
    monkeypatch.setattr(table_key, "version", lambda of: "0.0.1" if of == name else version(of))
    assert_all_differ(before, keys(run))


def test_python(run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(run)
    monkeypatch.setattr(table_key.sys, "version_info", (3, 99, 0))
    assert_all_differ(before, keys(run))


@pytest.mark.parametrize("name", [*CODE, "data/render.py", "data/parquet_program.py"])
def test_our_own_code(run: RunSpec, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before, read = keys(run), Path.read_bytes
    changed = Path(table_key.__file__).parents[1] / name

    def read_changed(path: Path) -> bytes:
        return read(path) + b"# more" if path == changed else read(path)

    assert changed.exists()
    monkeypatch.setattr(Path, "read_bytes", read_changed)
    assert_all_differ(before, keys(run))


def assert_all_differ(*made: list[str]) -> None:
    for part in zip(*made, strict=True):
        assert len(set(part)) == len(made)
