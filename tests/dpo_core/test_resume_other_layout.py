"""A checkpoint of one number of ranks and one ZeRO stage, gone on from with others: three launches train everything."""

from __future__ import annotations

import json
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

Resumed = tuple[str, int, int]
"""What goes on from step 3 of a whole run: its name, and the ranks and the ZeRO stage then."""

MORE_RANKS_AND_FEWER: list[Resumed] = [
    ("full, 1 rank, stage 2", 2, 3),
    ("full, 2 ranks, stage 3", 1, 1),
    ("dropout, 2 ranks, stage 1", 1, 0),
]
OTHERS: list[Resumed] = [
    ("lora, 1 rank, stage 0", 2, 1),
    ("full, 2 ranks, stage 3", 2, 2),
    ("full, 2 ranks, stage 2", 1, 0),
    ("lora, 2 ranks, stage 3", 1, 0),
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(MORE_RANKS_AND_FEWER, id="more ranks and fewer"),
        pytest.param(OTHERS, id="others", marks=pytest.mark.long),
    ],
)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str | Resumed, RunDirectory]:
    """Those of some resumptions, and the whole runs that they go on from."""
    some: list[Resumed] = request.param
    workshop = Workshop(tmp_path_factory.mktemp("layouts"))
    whole, resumed = {}, {}
    for name in dict.fromkeys(name for name, _, _ in some):
        ranks, training = WHOLE[name]
        whole[name] = workshop.make(name, ranks=ranks, training=training)
    for name, ranks, stage in some:
        resumed[name, ranks, stage] = workshop.make(
            f"{name}, then {ranks} and {stage}",
            ranks=ranks,
            training=WHOLE[name][1] | {"zero_stage": stage},
            resume_from=whole[name].checkpoints / "step-3",
        )
    train_all([run for name, run in whole.items() if WHOLE[name][0] == 1], ranks=1)
    of_two = [run for name, run in whole.items() if WHOLE[name][0] == 2]
    train_all(of_two + [run for (_, ranks, _), run in resumed.items() if ranks == 2], ranks=2)
    train_all([run for (_, ranks, _), run in resumed.items() if ranks == 1], ranks=1)
    return {**whole, **resumed}


def resumptions(runs: dict[str | Resumed, RunDirectory]) -> list[Resumed]:
    return [name for name in runs if isinstance(name, tuple)]


def test_it_goes_on_within_1e_5(runs: dict[str | Resumed, RunDirectory]) -> None:
    exact = [resumed for resumed in resumptions(runs) if "dropout" not in resumed[0]]
    assert exact
    for resumed in exact:
        whole = runs[resumed[0]]
        assert losses(runs[resumed]) == pytest.approx(losses(whole)[3:], abs=1e-5), resumed
        expected, found = lines(whole, "validation")[6], lines(runs[resumed], "validation")[6]
        for metric in ("loss", "rewards/margins"):
            assert found[metric] == pytest.approx(expected[metric], abs=1e-5), resumed


def test_it_says_so_only_where_dropout_draws_other_numbers(runs: dict[str | Resumed, RunDirectory]) -> None:
    for resumed in resumptions(runs):
        events = [json.loads(line) for line in runs[resumed].events_file.read_text().splitlines()]
        said = [event["message"] for event in events if event["code"] == "generators_reseeded"]
        reseeded = (
            "The checkpoint was made by 2 ranks on cpu: dropout goes on with numbers of its own, not with those that "
            "the run would have drawn there."
        )
        assert said == ([reseeded] if "dropout" in resumed[0] else []), resumed


def test_a_state_holds_no_pickle(runs: dict[str | Resumed, RunDirectory]) -> None:
    for name, run in runs.items():
        if isinstance(name, str):
            state = run.checkpoints / "step-3" / "state"
            assert {path.suffix for path in state.rglob("*") if path.is_file()} == {".safetensors", ".json"}
