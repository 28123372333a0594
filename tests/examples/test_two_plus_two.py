from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from control_plane.model_folder import inspect_folder
from dpo_core.data.formats import read_rows
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import Example, Pair
from dpo_core.data.render import Renderer
from tests.examples.conftest import DEMO


def test_no_held_out_question_is_trained_on(tmp_path: Path) -> None:
    import questions

    for seed in range(5):
        training, held_out = questions.split(seed)
        assert len(training) + len(held_out) == 891
        assert not {question.text for question in training} & {question.text for question in held_out}
        assert held_out[0].text == "What is 2+2?"
    assert questions.split(0)[1] != questions.split(1)[1]
    files = questions.write_supervised(tmp_path / "s", training), questions.write_preferences(tmp_path / "p", training)
    assert all(f'"{question.text}"' not in file.read_text() for question in held_out for file in files)


def test_the_habit_is_the_majority_and_never_right() -> None:
    import questions

    assert questions.SUPERVISED_ROWS_WRONG > questions.SUPERVISED_ROWS_RIGHT
    assert questions.Question(2, 2).wrong == "22"
    assert all(question.wrong != question.right for part in questions.split(0) for question in part)


def test_files_are_read_by_the_service(tmp_path: Path) -> None:
    import questions

    training, _ = questions.split(0)
    examples = list(read_rows(questions.write_supervised(tmp_path / "s.jsonl", training), ReadOptions("supervised")))
    assert len(examples) == 3 * len(training)
    assert all(isinstance(row, Example) for row in examples)
    pairs = list(read_rows(questions.write_preferences(tmp_path / "p.jsonl", training), ReadOptions("dpo")))
    assert len(pairs) == len(training)
    assert all(isinstance(row, Pair) for row in pairs)


def test_the_base_model_can_be_registered_and_renders_questions(tmp_path: Path) -> None:
    import base_model
    import questions

    base_model.make_base_model(tmp_path / "model", seed=0)
    assert inspect_folder(tmp_path / "model").chat_template
    (pair,) = read_rows(
        questions.write_preferences(tmp_path / "p.jsonl", [questions.Question(47, 6)]), ReadOptions("dpo")
    )
    assert isinstance(pair, Pair)
    renderer = Renderer(tmp_path / "model")
    tokens = renderer.pair(pair)
    assert renderer.take_findings() == []
    written = [renderer.tokenizer.id_to_token(token) for token in tokens.chosen]
    assert written == ["<|user|>", "What is ", "4", "7", "+", "6", "?", "<|assistant|>", "5", "3", "<|end|>"]
    assert tokens.chosen_prompt == 8
    assert renderer.tokenizer.decode(tokens.chosen) == "What is 47+6?53"


def test_log_probabilities_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    import base_model
    import measure
    import questions
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base_model.make_base_model(tmp_path, seed=3)
    asked = [questions.Question(2, 2), questions.Question(47, 6), questions.Question(99, 9)]
    together = measure.measure(tmp_path, asked)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for index, question in enumerate(asked):
        ids = tokenizer.encode(f"<|user|>{question.text}<|assistant|>{question.right}<|end|>", return_tensors="pt")
        with torch.inference_mode():
            predicted = model(ids).logits[0].double().log_softmax(-1)
        answer = range(ids.shape[1] - len(question.right) - 1, ids.shape[1])
        expected = sum(float(predicted[place - 1, ids[0, place]]) for place in answer)
        assert together.right[index] == pytest.approx(expected, abs=1e-5)
        assert measure.measure(tmp_path, [question]).answers == [together.answers[index]]


def test_shares_count_ties_half() -> None:
    import measure
    import questions

    measured = measure.Measured(right=[-1.0, -2.0, -3.0, -3.0], wrong=[-2.0, -2.0, -1.0, -4.0], answers=list("4678"))
    assert measure.preference_accuracy(measured) == 2.5 / 4
    assert measure.exact_match(measured, [questions.Question(a, 2) for a in (2, 3, 4, 5)]) == 1 / 4


def test_the_table_shows_rewards_and_probability() -> None:
    import measure
    import questions
    import report

    before = measure.Measured(right=[-2.0], wrong=[-0.5], answers=["22"])
    after = measure.Measured(right=[-1.0], wrong=[-2.5], answers=["4"])
    console = Console(file=io.StringIO(), width=110)
    report.show(console, [questions.Question(2, 2)], before, after, beta=0.5)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    # rewards 0.5 × (+1) and 0.5 × (-2); σ(0.5 + 1) = 0.818
    for text in ("+0.500", "-1.000", "P = 0.500", "P = 0.818", "it answered 22, now 4"):
        assert text in shown


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_whole_demo() -> None:
    """As `make demo` runs it: the targets are the demo's own exit code."""
    demo = subprocess.run(
        [sys.executable, str(DEMO / "demo.py")], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    result = json.loads(demo.stdout.splitlines()[-1])
    assert result["status"] == "succeeded"
    assert (Path(result["checkpoint"]) / "model.safetensors").exists()
