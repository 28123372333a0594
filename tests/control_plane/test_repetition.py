"""A create request that comes twice makes one job, even when both come at once."""

from __future__ import annotations

from dataclasses import replace
from threading import Barrier, Thread
from typing import Any

import pytest

from control_plane import jobs
from control_plane.database import Database
from control_plane.errors import GaveUp, InvalidRequest
from control_plane.job_requests import read_request
from control_plane.repetition import Repeatable
from tests.control_plane.rows import PROJECT, body, set_clock_ahead

KEYED = Repeatable(idempotency_key="k" * 5000, api_key_id="key-1")
FIRST = Repeatable(api_key_id="key-1")
RETRY = Repeatable(api_key_id="key-1", is_retry=True)


def create(database: Database, repeatable: Repeatable, **changes: Any) -> str:
    with database.transaction() as session:
        return jobs.create(session, PROJECT, read_request(body(**changes)), repeatable=repeatable).id


def test_the_same_key_and_body_is_the_same_job_for_good(stocked: Database) -> None:
    job_id = create(stocked, KEYED, metadata={"a": "1", "b": "2"})
    with stocked.transaction() as session:
        set_clock_ahead(session, 86_400)
    assert create(stocked, KEYED, metadata={"b": "2", "a": "1"}) == job_id


def test_the_same_key_with_another_body_is_refused(stocked: Database) -> None:
    create(stocked, KEYED)
    with pytest.raises(InvalidRequest) as refusal:
        create(stocked, KEYED, seed=1)
    assert refusal.value.code == "idempotency_key_reused"


def test_a_key_of_a_refused_request_is_free(stocked: Database) -> None:
    with pytest.raises(InvalidRequest):
        create(stocked, KEYED, model="base/none")
    create(stocked, KEYED)


def test_a_retry_is_the_job_that_came_before(stocked: Database) -> None:
    job_id = create(stocked, FIRST)
    assert create(stocked, RETRY) == job_id
    assert create(stocked, RETRY, seed=1) != job_id
    assert create(stocked, Repeatable(api_key_id="key-2", is_retry=True)) != job_id


def test_a_retry_whose_first_try_never_arrived_makes_the_job(stocked: Database) -> None:
    job_id = create(stocked, RETRY)
    assert create(stocked, RETRY) == job_id


def test_a_first_try_that_comes_after_its_retry_makes_no_second_job(stocked: Database) -> None:
    """The client hung up before it tried again, and the API got round to the first try last."""
    job_id = create(stocked, RETRY)
    for late in (FIRST, RETRY):
        with pytest.raises(GaveUp):
            create(stocked, replace(late, hung_up=lambda: True))
    assert create(stocked, RETRY) == job_id


def test_a_request_with_a_key_is_dealt_with_though_its_client_hung_up(stocked: Database) -> None:
    job_id = create(stocked, replace(KEYED, hung_up=lambda: True))
    assert create(stocked, KEYED) == job_id


def test_the_same_request_made_on_purpose_is_another_job(stocked: Database) -> None:
    first, second = create(stocked, FIRST), create(stocked, FIRST)
    assert first != second
    assert create(stocked, RETRY) == second


def test_a_retry_after_the_window_is_another_job(stocked: Database) -> None:
    job_id = create(stocked, FIRST)
    with stocked.transaction() as session:
        set_clock_ahead(session, 1_830)  # the third try of a client that waits ten minutes for each answer
    assert create(stocked, RETRY) == job_id
    with stocked.transaction() as session:
        set_clock_ahead(session, 3_601)
    assert create(stocked, RETRY) != job_id


@pytest.mark.parametrize("repeatable", [KEYED, RETRY])
def test_eight_at_once_make_one_job(stocked: Database, repeatable: Repeatable) -> None:
    made: list[str] = []
    together = Barrier(8)

    def ask() -> None:
        together.wait()
        made.append(create(stocked, repeatable))

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    with stocked.transaction() as session:
        assert len(jobs.list_jobs(session, PROJECT).items) == 1
