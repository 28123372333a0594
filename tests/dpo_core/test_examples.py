"""The committed specs of `examples/` on the files they are for, with the minimind tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import mkdtemp

import pytest

from dpo_core.prepare import prepare
from dpo_core.spec import ModelSource, RunSpec, TrainingSpec
from tests.makers import make_tiny_model, real_data

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = real_data("tokenizers/minimind")
    folder = make_tiny_model(tmp_path_factory.mktemp("minimind"), vocab=6400, chat_template=None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return folder


@pytest.mark.parametrize(
    ("example", "file", "rows", "bad"),
    [
        ("orca", "orca/validation.jsonl", 284, 0),
        ("piqa", "piqa/piqa_validation_pairs.jsonl", 1838, 0),
        ("hh_rlhf", "hh-rlhf/harmless-base_test.jsonl.gz", 2312, 9),
    ],
)
def test_an_example_prepares_its_file(model: Path, example: str, file: str, rows: int, bad: int) -> None:
    training = TrainingSpec.model_validate(json.loads((EXAMPLES / example / "job.json").read_text())["training"])
    source = ModelSource(id="minimind", path=model)
    spec = RunSpec(job_id="job", training=training, model=source, training_file=real_data(file))
    report = prepare(spec, Path(mkdtemp(dir=model.parent))).report
    assert (report.rows, report.bad, report.pairs) == (rows, bad, rows - bad)
    assert report.validation_items == pytest.approx(0.05 * report.pairs, abs=2)
