"""Every pair of states: the legal moves move and write an event, all others are refused."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from control_plane.database import Database
from control_plane.errors import Conflict
from control_plane.job_states import FINAL, LEGAL_MOVES, State, move
from tests.control_plane.rows import event_codes, job_in, read_job

PAGE = Path(__file__).parents[2] / "docs" / "job_states.md"

LEGAL = {
    "validating": "queued failed cancelled",
    "queued": "running paused cancelled",
    "running": "queued pausing succeeded failed cancelled",
    "pausing": "paused succeeded failed cancelled",
    "paused": "queued cancelled",
    "succeeded": "",
    "failed": "",
    "cancelled": "",
}


def test_every_pair_of_states(stocked: Database) -> None:
    for origin, to in product(State, State):
        with stocked.transaction() as session:
            job = job_in(session, origin)
            if to.value in LEGAL[origin.value].split():
                move(session, job, to, code="moved", message="Moved.")
            else:
                with pytest.raises(Conflict) as refusal:
                    move(session, job, to, code="moved", message="Moved.")
                assert refusal.value.message.startswith(f"Job {job.id} is {origin}; it can't become {to}.")
        after = read_job(stocked, job.id)
        moved = after.state == to.value and origin is not to
        assert moved == (to.value in LEGAL[origin.value].split())
        assert ("moved" in event_codes(stocked, job.id)) == moved
        assert (after.finished_at is not None) == (moved and to in FINAL)


def test_a_move_and_its_event_are_one_transaction(stocked: Database) -> None:
    with stocked.transaction() as session:
        job = job_in(session, State.queued)
    with pytest.raises(RuntimeError), stocked.transaction() as session:
        held = session.merge(job, load=True)
        move(session, held, State.running, code="moved", message="Moved.")
        raise RuntimeError
    assert read_job(stocked, job.id).state == "queued"
    assert "moved" not in event_codes(stocked, job.id)


def test_the_picture_in_the_docs_shows_the_table() -> None:
    arrows = re.findall(r"^\s*(\w+) --> (\w+)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    drawn = {(origin, to) for origin, to in arrows if origin in set(State)}
    assert drawn == {(origin.value, to.value) for origin, moves in LEGAL_MOVES.items() for to in moves}
