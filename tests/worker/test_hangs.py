"""A trainer that lives and no longer gets on: its stacks are kept, it is killed, and the job goes on elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from control_plane import job_logs
from control_plane.tables import Event, Model
from tests.makers import make_tiny_model, write_preference_file
from tests.stub_trainer import chain
from tests.worker.stubs import World, eventually, stub_programs, supervisor
from worker.folders import RunFolders
from worker.hangs import UNEVEN_LEAST, Watch, head, patience
from worker.launch import Programs


def event(world: World, job_id: str, code: str) -> Event:
    with world.database.transaction() as session:
        return session.scalars(select(Event).where(Event.job_id == job_id, Event.code == code)).one()


def log(world: World, job_id: str) -> str:
    with world.database.transaction() as session:
        found = job_logs.of_job(session, world.project_id, job_id)
    return "".join(job_logs.text(world.storage, found))


def test_a_trainer_that_waits_for_ever_is_killed_with_its_stacks_and_goes_on(world: World) -> None:
    settings = world.settings.model_copy(update={"hang_seconds": 1.0})
    with supervisor(settings, stub_programs(["--hang-at=3"])):
        job_id = world.job()
        world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    assert world.outcomes(job_id) == [("validate", "succeeded"), ("train", "failed"), ("train", "succeeded")]
    assert world.final_weights(job_id) == chain(6, job_id)
    assert world.measured(job_id) == list(range(6))
    hung = event(world, job_id, "trainer_hung")
    assert hung.level == "warn"
    assert "training at step 3" in hung.message and "goes on from step 2" in hung.message
    assert hung.data["log"].startswith("rank 0:") and "in hang_for_ever" in hung.data["log"]
    text = log(world, job_id)
    assert "waiting for a lock" in text
    assert "in hang_for_ever" in text.split("--- rank 0 made no progress; its stacks:")[1]
    assert "Thread 0x" in text, "the other threads' stacks are there, too"


def test_a_job_that_beats_is_left_alone_and_one_that_does_not_is_asked_for_its_stacks_first(world: World) -> None:
    """Progress is what counts, not how long a step takes."""
    run = RunFolders(world.runs).make("ftjob-1", 1)
    watch = Watch(run, hang_seconds=0.0)
    run.pulse_file.write_text(json.dumps({"phase": "training", "count": 1}))
    assert watch.look() is None
    watch._next_look = 0.0
    run.pulse_file.write_text(json.dumps({"phase": "training", "count": 2}))
    assert watch.look() is None
    watch._next_look = 0.0
    assert watch.look() is None, "the stacks are asked for first"
    watch._next_look = watch._asked_at = 0.0
    assert (failure := watch.look()) is not None
    assert (failure.kind, failure.code) == ("infrastructure", "trainer_hung")


def test_a_phase_without_beats_may_take_longer() -> None:
    assert patience("training", 900) == patience("evaluation", 900) == patience("reference", 900) == 900
    assert patience("loading", 900) == patience("first step", 900) == patience("checkpoint", 900) == 3600
    assert patience("starting", 1) == UNEVEN_LEAST


def test_the_head_of_a_dump_is_the_main_threads() -> None:
    dump = 'Thread 0x1 (most recent call first):\n  File "a.py", line 1 in wait\n\n'
    dump += (
        'Current thread 0x2 (most recent call first):\n  File "b.py", line 2 in step\n  File "b.py", line 9 in run\n'
    )
    assert head(dump) == '  File "b.py", line 2 in step\n  File "b.py", line 9 in run'
    assert "frozen" in head("")


def test_a_real_rank_that_freezes_hangs_its_peer_which_says_where(world: World, tmp_path: Path) -> None:
    """One of two real ranks is stopped: both live, neither gets on."""
    with world.database.transaction() as session:
        session.get_one(Model, "base/tiny").path = str(make_tiny_model(tmp_path / "model"))
    pairs = write_preference_file(tmp_path / "pairs.jsonl", 44).read_text()
    training: dict[str, Any] = {
        "epochs": 1000,
        "batch_size": 4,
        "max_length": 128,
        "checkpoint_steps": 10**6,
        "validation_fraction": 0,
    }
    settings = world.settings.model_copy(update={"hang_seconds": 5.0, "max_attempts": 1})
    with supervisor(settings, Programs()):
        job_id = world.job(pairs, training=training, resources={"gpus": 2}, method={"type": "dpo"})
        eventually(lambda: bool(world.measured(job_id)) or world.state(job_id) == "failed", "it trains")
        assert world.state(job_id) == "running", world.row(job_id).error
        run = max(world.runs.glob(f"{job_id}/*"), key=lambda folder: int(folder.name))
        psutil.Process(json.loads((run / "processes" / "1.json").read_bytes())["pid"]).suspend()
        world.reaches(job_id, "failed", "succeeded")
        world.nothing_left()
    heads = event(world, job_id, "trainer_hung").data["log"]
    first, second = heads.split("rank 1:")
    assert first.startswith("rank 0:\n  File ") and "frozen" in second
    assert "dpo_core/train.py" in log(world, job_id), "where rank 0 waits for its peer"
