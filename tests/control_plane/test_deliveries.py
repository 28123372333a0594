"""Deliveries are made with what they tell of, leased, tried again for longer and longer, and at last given up."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import deliveries, jobs, webhooks
from control_plane.database import Database, dpo_now
from control_plane.deliveries import FIRST_WAIT, LEASE_SECONDS, LONGEST_WAIT, PATIENCE, Claim, Outcome, wait_after
from control_plane.errors import Conflict, NotFound, StaleFence
from control_plane.job_states import State, move
from control_plane.settings import Settings
from control_plane.tables import WebhookDelivery, WebhookEndpoint
from control_plane.webhooks import MAX_ENDPOINTS, MAX_OLD_SECRETS, signature
from tests.control_plane.rows import PROJECT, add_project, event_codes, job_in, set_clock_ahead

SETTINGS = Settings(database_url=SecretStr("postgresql://"), redis_url=SecretStr("redis://"), storage_url="file:///x")
DAYS = timedelta(days=5)
FAILED = Outcome(500, "it answered HTTP 500")
DONE = Outcome(204, None)


def endpoint(session: Session, project_id: str = PROJECT, **body: object) -> WebhookEndpoint:
    return webhooks.create(session, project_id, {"url": "https://hooks.example/x", **body}, SETTINGS)


def end_a_job(session: Session) -> str:
    job = job_in(session, State.queued)
    return jobs.cancel(session, PROJECT, job.id).id


def all_rows(database: Database) -> list[WebhookDelivery]:
    with database.transaction() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)))


def claim(database: Database) -> Claim | None:
    with database.transaction() as session:
        return deliveries.claim(session, "postman-1")


def claimed(database: Database) -> Claim:
    found = claim(database)
    assert found is not None
    return found


def report(database: Database, claim: Claim, outcome: Outcome) -> None:
    with database.transaction() as session:
        deliveries.report(session, claim, outcome, disable_after=DAYS)


def test_every_end_is_told_to_who_wants_to_know(stocked: Database) -> None:
    with stocked.transaction() as session:
        add_project(session, "proj-2", "other")
        everything = endpoint(session).id
        failures = endpoint(session, event_types=["fine_tuning.job.failed"]).id
        endpoint(session, "proj-2")
        webhooks.change(session, PROJECT, endpoint(session).id, {"status": "disabled"}, SETTINGS)
        told = []
        for state in (State.succeeded, State.failed, State.cancelled):
            job = job_in(session, State.running)
            told.append((f"fine_tuning.job.{state}", job.id))
            move(session, job, state, code="x", message="x")
        paused = job_in(session, State.pausing)
        move(session, paused, State.paused, code="x", message="x")
    rows = all_rows(stocked)
    assert [(row.event_type, row.job_id) for row in rows if row.endpoint_id == everything] == told
    assert [(row.event_type, row.job_id) for row in rows if row.endpoint_id == failures] == told[1:2]
    assert len(rows) == 4
    body = json.loads(rows[0].payload)
    assert body == {
        "id": rows[0].event_id,
        "object": "event",
        "created_at": int(rows[0].created_at.timestamp()),
        "type": "fine_tuning.job.succeeded",
        "data": {"id": told[0][1]},
    }, "ids only"


def test_a_delivery_is_made_with_the_move_or_not_at_all(stocked: Database) -> None:
    with stocked.transaction() as session:
        endpoint(session)
    with pytest.raises(RuntimeError), stocked.transaction() as session:
        end_a_job(session)
        raise RuntimeError
    assert all_rows(stocked) == []


def test_an_endpoint_that_is_being_deleted_stops_no_job(stocked: Database) -> None:
    with stocked.transaction() as session:
        gone = endpoint(session).id
    with stocked.transaction() as deleter:
        webhooks.remove(deleter, PROJECT, gone)
        with stocked.transaction() as mover:
            mover.connection().exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
            job = job_in(mover, State.running)
            with pytest.raises(Exception, match="lock timeout"):  # it waits, instead of failing at the foreign key
                move(mover, job, State.failed, code="x", message="x")
            mover.rollback()


def test_an_endpoint_gets_one_at_a_time_and_a_lease_runs_out(stocked: Database) -> None:
    with stocked.transaction() as session:
        first, second = endpoint(session).id, endpoint(session).id
        end_a_job(session)
        end_a_job(session)
    lost, other = claimed(stocked), claimed(stocked)
    rows = {row.id: row for row in all_rows(stocked)}
    assert {rows[it.delivery_id].endpoint_id for it in (lost, other)} == {first, second}
    assert claim(stocked) is None
    report(stocked, other, DONE)
    following = claimed(stocked)
    assert rows[following.delivery_id].endpoint_id == rows[other.delivery_id].endpoint_id
    with stocked.transaction() as session:
        set_clock_ahead(session, LEASE_SECONDS + 1)
    again = claimed(stocked)
    assert (again.delivery_id, again.message_id, again.fence) == (lost.delivery_id, lost.message_id, lost.fence + 1)
    with pytest.raises(StaleFence):
        report(stocked, lost, DONE)
    report(stocked, again, DONE)
    assert {row.id: row.state for row in all_rows(stocked)}[again.delivery_id] == "delivered"


def test_a_lease_that_a_clock_ahead_wrote_is_none(stocked: Database) -> None:
    """Its worker died while PostgreSQL's clock was an hour ahead, which has been set right."""
    with stocked.transaction() as session:
        endpoint(session)
        end_a_job(session)
    held = claimed(stocked)
    with stocked.transaction() as session:
        delivery = session.get_one(WebhookDelivery, held.delivery_id)
        assert delivery.lease_until is not None
        delivery.lease_until += timedelta(hours=1)
    assert claimed(stocked).fence == held.fence + 1


def test_waits_double_up_to_two_hours_with_a_random_part() -> None:
    for tries in range(1, 40):
        longest = min(FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT)
        waits = {wait_after(tries) for _ in range(20)}
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert len(waits) > 10


def test_it_is_given_up_after_a_day_and_can_be_sent_again(stocked: Database) -> None:
    with stocked.transaction() as session:
        endpoint_id = endpoint(session).id
        end_a_job(session)
    ahead, tries = 0.0, 0
    while (found := claim(stocked)) is not None:
        tries += 1
        report(stocked, found, FAILED)
        (row,) = all_rows(stocked)
        assert (row.attempts, row.status_code, row.error) == (tries, 500, FAILED.error)
        ahead += LONGEST_WAIT.total_seconds()
        with stocked.transaction() as session:
            set_clock_ahead(session, ahead)
    assert (row.state, row.next_try_at) == ("failed", None)
    assert ahead <= PATIENCE.total_seconds() + LONGEST_WAIT.total_seconds() and tries >= 12
    with stocked.transaction() as session:
        deliveries.redeliver(session, PROJECT, endpoint_id, row.id)
    again = claimed(stocked)
    assert again.message_id == row.event_id and again.body == row.payload
    report(stocked, again, FAILED)
    (row,) = all_rows(stocked)
    assert row.state == "waiting" and row.next_try_at is not None and row.tried_at is not None
    assert row.next_try_at - row.tried_at < FIRST_WAIT + timedelta(seconds=5), "the waits begin anew"


def test_a_delivery_that_kills_its_worker_each_time_comes_to_an_end(stocked: Database) -> None:
    with stocked.transaction() as session:
        endpoint(session)
        end_a_job(session)
    claimed(stocked)
    with stocked.transaction() as session:
        set_clock_ahead(session, PATIENCE.total_seconds() - 5)
    assert claimed(stocked).fence == 2, "there is time for another try"
    with stocked.transaction() as session:
        set_clock_ahead(session, PATIENCE.total_seconds() + LEASE_SECONDS)
        end_a_job(session)
    assert claimed(stocked).delivery_id == all_rows(stocked)[1].id, "it holds up no other"
    given_up = all_rows(stocked)[0]
    assert (given_up.state, given_up.lease_until) == ("failed", None)
    assert given_up.error == "whoever sent it last was not heard of any more"


def test_an_endpoint_is_disabled_after_days_of_failures_with_an_event(stocked: Database) -> None:
    with stocked.transaction() as session:
        endpoint_id = endpoint(session).id
        end_a_job(session)
    report(stocked, claimed(stocked), FAILED)
    with stocked.transaction() as session:
        set_clock_ahead(session, DAYS.total_seconds() - 60)
        end_a_job(session)
    report(stocked, claimed(stocked), FAILED)
    with stocked.transaction() as session:
        set_clock_ahead(session, DAYS.total_seconds() + 60)
        last = end_a_job(session)
        waiting = end_a_job(session)
    told = [row for row in all_rows(stocked) if row.job_id == last]
    while (found := claim(stocked)) is not None and found.delivery_id != told[0].id:
        report(stocked, found, FAILED)
    if found is not None:
        report(stocked, found, FAILED)
    with stocked.transaction() as session:
        disabled = webhooks.get(session, PROJECT, endpoint_id)
        assert disabled.disabled_at is not None
        assert "nothing was delivered since" in str(disabled.disabled_reason) and "HTTP 500" in str(
            disabled.disabled_reason
        )
    rows = all_rows(stocked)
    assert {row.state for row in rows} == {"failed"}, "nothing waits for it any more"
    told_jobs = [str(row.job_id) for row in rows if "webhook_disabled" in event_codes(stocked, str(row.job_id))]
    assert len(told_jobs) == 1
    assert claim(stocked) is None
    with stocked.transaction() as session:
        with pytest.raises(Conflict, match="enable it first"):
            deliveries.redeliver(session, PROJECT, endpoint_id, rows[0].id)
        webhooks.change(session, PROJECT, endpoint_id, {"status": "enabled"}, SETTINGS)
        deliveries.redeliver(session, PROJECT, endpoint_id, rows[0].id)
    report(stocked, claimed(stocked), DONE)
    assert waiting


def test_a_delivery_that_arrives_ends_the_count_of_failures(stocked: Database) -> None:
    with stocked.transaction() as session:
        endpoint_id = endpoint(session).id
        end_a_job(session)
    report(stocked, claimed(stocked), FAILED)
    with stocked.transaction() as session:
        set_clock_ahead(session, 60)
    report(stocked, claimed(stocked), DONE)
    with stocked.transaction() as session:
        assert webhooks.get(session, PROJECT, endpoint_id).failing_since is None


def test_a_test_is_sent_once_and_counts_for_nothing(stocked: Database) -> None:
    with stocked.transaction() as session:
        endpoint_id = endpoint(session).id
        deliveries.test(session, PROJECT, endpoint_id, "fine_tuning.job.failed")
    report(stocked, claimed(stocked), FAILED)
    (row,) = all_rows(stocked)
    assert (row.state, row.attempts, row.job_id) == ("failed", 1, None)
    with stocked.transaction() as session:
        assert webhooks.get(session, PROJECT, endpoint_id).failing_since is None


def test_deleting_an_endpoint_takes_its_log_and_what_waits(stocked: Database) -> None:
    with stocked.transaction() as session:
        endpoint_id = endpoint(session).id
        end_a_job(session)
    sent = claimed(stocked)
    with stocked.transaction() as session:
        webhooks.remove(session, PROJECT, endpoint_id)
    assert all_rows(stocked) == []
    with pytest.raises(StaleFence):
        report(stocked, sent, DONE)


def test_the_log_is_kept_for_thirty_days(stocked: Database) -> None:
    with stocked.transaction() as session:
        endpoint(session)
        end_a_job(session)
    report(stocked, claimed(stocked), DONE)
    with stocked.transaction() as session:
        deliveries.forget_old(session)
    assert len(all_rows(stocked)) == 1
    with stocked.transaction() as session:
        set_clock_ahead(session, timedelta(days=31).total_seconds())
        deliveries.forget_old(session)
    assert all_rows(stocked) == []


def test_a_rotated_secret_signs_beside_the_new_one_for_a_day(stocked: Database) -> None:
    with stocked.transaction() as session:
        made = endpoint(session)
        old, endpoint_id = made.secret, made.id
        kept = {"keep_old_secret_active_for_24_hours": True}
        new = webhooks.rotate_secret(session, PROJECT, endpoint_id, kept).secret
        end_a_job(session)
        end_a_job(session)
    both = claimed(stocked)
    assert both.secrets == (new, old)
    assert signature(old, "a", 1, "b") != signature(new, "a", 1, "b")
    report(stocked, both, DONE)
    with stocked.transaction() as session:
        set_clock_ahead(session, timedelta(hours=25).total_seconds())
    assert claimed(stocked).secrets == (new,)


def test_secrets_that_are_rotated_again_end_each_at_their_own_time(stocked: Database) -> None:
    def rotate(**body: bool) -> str:
        with stocked.transaction() as session:
            return webhooks.rotate_secret(session, PROJECT, endpoint_id, body).secret

    def signing(hours: float) -> tuple[str, ...]:
        with stocked.transaction() as session:
            set_clock_ahead(session, timedelta(hours=hours).total_seconds())
            at = session.scalars(select(dpo_now())).one()
            return webhooks.signing_secrets(webhooks.get(session, PROJECT, endpoint_id), at)

    with stocked.transaction() as session:
        made = endpoint(session)
        first, endpoint_id = made.secret, made.id
    second = rotate(keep_old_secret_active_for_24_hours=True)
    assert signing(hours=20) == (second, first)
    third = rotate(keep_old_secret_active_for_24_hours=True)
    assert signing(hours=23) == (third, second, first)
    fourth = rotate()
    assert signing(hours=23) == (fourth, second, first), "what ends at once is the secret that was rotated"
    assert signing(hours=25) == (fourth, second)
    assert signing(hours=45) == (fourth,)


def test_only_so_many_secrets_sign_at_once(stocked: Database) -> None:
    keep = {"keep_old_secret_active_for_24_hours": True}
    with stocked.transaction() as session:
        endpoint_id = endpoint(session).id
        for _ in range(MAX_OLD_SECRETS):
            newest = webhooks.rotate_secret(session, PROJECT, endpoint_id, keep).secret
        with pytest.raises(Conflict, match=r"10 old secrets .* Wait until the oldest ends, at 20\d\d-"):
            webhooks.rotate_secret(session, PROJECT, endpoint_id, keep)
        assert webhooks.get(session, PROJECT, endpoint_id).secret == newest
        assert webhooks.rotate_secret(session, PROJECT, endpoint_id, {}).secret != newest


def test_endpoints_of_a_project_are_bounded_and_its_own(stocked: Database) -> None:
    with stocked.transaction() as session:
        add_project(session, "proj-2", "other")
        for _ in range(MAX_ENDPOINTS):
            mine = endpoint(session).id
        with pytest.raises(Conflict, match="20 webhook endpoints already"):
            endpoint(session)
        for call in (
            lambda: webhooks.get(session, "proj-2", mine),
            lambda: webhooks.change(session, "proj-2", mine, {}, SETTINGS),
            lambda: webhooks.rotate_secret(session, "proj-2", mine, {}),
            lambda: webhooks.remove(session, "proj-2", mine),
            lambda: deliveries.list_deliveries(session, "proj-2", mine),
            lambda: deliveries.test(session, "proj-2", mine, "fine_tuning.job.failed"),
            lambda: deliveries.redeliver(session, "proj-2", mine, "delivery-1"),
            lambda: deliveries.redeliver(session, PROJECT, mine, "delivery-1"),
        ):
            with pytest.raises(NotFound):
                call()
        assert webhooks.list_endpoints(session, "proj-2").items == []
