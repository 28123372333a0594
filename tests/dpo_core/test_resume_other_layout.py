"""A checkpoint of one number of ranks and one ZeRO stage, gone on from with others: three launches train everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_core.run_directory import RunDirectory
from tests.dpo_core.runs import Workshop, lines, losses, train_all

LORA = {"rank": 4, "alpha": 8}
DROPOUT = LORA | {"dropout": 0.1}

WHOLE: dict[str, tuple[int, dict[str, Any]]] = {
    "full, 1 rank, stage 2": (1, {"zero_stage": 2}),
    "lora, 1 rank, stage 0": (1, {"zero_stage": 0, "lora": LORA}),
    "full, 2 ranks, stage 2": (2, {"zero_stage": 2}),
    "full, 2 ranks, stage 3": (2, {"zero_stage": 3}),
    "lora, 2 ranks, stage 3": (2, {"zero_stage": 3, "lora": LORA}),
    "dropout, 2 ranks, stage 1": (2, {"zero_stage": 1, "lora": DROPOUT}),
}
"""Uninterrupted runs: ranks, and changes to the spec."""

RESUMED = [
    ("full, 1 rank, stage 2", 2, 3),
    ("lora, 1 rank, stage 0", 2, 1),
    ("full, 2 ranks, stage 3", 2, 2),
    ("full, 2 ranks, stage 2", 1, 0),
    ("full, 2 ranks, stage 3", 1, 1),
    ("lora, 2 ranks, stage 3", 1, 0),
    ("dropout, 2 ranks, stage 1", 1, 0),
]
"""Gone on from step 3 of a whole run: ranks and ZeRO stage then."""
EXACT = [resumed for resumed in RESUMED if "dropout" not in resumed[0]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, RunDirectory]:
    workshop = Workshop(tmp_path_factory.mktemp("layouts"))
    made: dict[Any, RunDirectory] = {}
    for name, (ranks, training) in WHOLE.items():
        made[name] = workshop.make(name, ranks=ranks, training=training)
    for name, ranks, stage in RESUMED:
        made[name, ranks, stage] = workshop.make(
            f"{name}, then {ranks} and {stage}",
            ranks=ranks,
            training=WHOLE[name][1] | {"zero_stage": stage},
            resume_from=made[name].checkpoints / "step-3",
        )
    train_all([made[name] for name in WHOLE if WHOLE[name][0] == 1], ranks=1)
    of_two = [made[name] for name in WHOLE if WHOLE[name][0] == 2]
    train_all(of_two + [made[resumed] for resumed in RESUMED if resumed[1] == 2], ranks=2)
    train_all([made[resumed] for resumed in RESUMED if resumed[1] == 1], ranks=1)
    return made


@pytest.mark.parametrize("resumed", EXACT)
def test_it_goes_on_within_1e_5(runs: dict[Any, RunDirectory], resumed: tuple[str, int, int]) -> None:
    whole = runs[resumed[0]]
    assert losses(runs[resumed]) == pytest.approx(losses(whole)[3:], abs=1e-5)
    expected, found = lines(whole, "validation")[6], lines(runs[resumed], "validation")[6]
    for metric in ("loss", "rewards/margins"):
        assert found[metric] == pytest.approx(expected[metric], abs=1e-5)


@pytest.mark.parametrize("resumed", RESUMED)
def test_it_says_so_only_where_dropout_draws_other_numbers(
    runs: dict[Any, RunDirectory], resumed: tuple[str, int, int]
) -> None:
    events = [json.loads(line) for line in runs[resumed].events_file.read_text().splitlines()]
    said = [event["message"] for event in events if event["code"] == "generators_reseeded"]
    if resumed in EXACT:
        assert said == []
    else:
        assert said == [
            "The checkpoint was made by 2 ranks on cpu: dropout goes on with numbers of its own, not with those that "
            "the run would have drawn there."
        ]


def test_a_state_holds_no_pickle(runs: dict[Any, RunDirectory]) -> None:
    for name in WHOLE:
        state: Path = runs[name].checkpoints / "step-3" / "state"
        assert {path.suffix for path in state.rglob("*") if path.is_file()} == {".safetensors", ".json"}
