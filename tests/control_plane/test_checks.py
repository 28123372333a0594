"""Questions about data: asked once, claimed by one worker at a time, answered under its fence, gone with the file."""

from __future__ import annotations

from threading import Barrier, Thread

import pytest
from sqlalchemy import func, select

from control_plane import checks, files, models
from control_plane.checks import Claim
from control_plane.database import Database
from control_plane.errors import StaleFence
from control_plane.questions import Question, about_file
from control_plane.tables import Check, File, Model
from dpo_core.run_directory import Failure
from tests.control_plane.rows import FILE, MODEL, PROJECT, add_file, add_project, set_clock_ahead

USER = Failure(kind="user", code="no_chat_template", message="The model has no chat template.")
OURS = Failure(kind="infrastructure", code="trainer_died", message="It ended without saying why.")


def ask(database: Database, file_id: str = FILE, project_id: str = PROJECT, model_id: str | None = None) -> str:
    with database.transaction() as session:
        question = about_file(files.hold(session, project_id, file_id))
        if model_id is not None:
            model = models.hold(session, project_id, model_id)
            question = Question("model_file", {"file": file_id, "model": model_id}, question.files, (model,))
        return checks.ask(session, project_id, question).id


def claim(database: Database) -> Claim | None:
    with database.transaction() as session:
        return checks.claim(session, worker_id="w1", lease_seconds=30)


def claimed(database: Database) -> Claim:
    ask(database)
    found = claim(database)
    assert found is not None
    return found


def finish(database: Database, taken: Claim, result: dict[str, object]) -> None:
    with database.transaction() as session:
        checks.finish(session, taken, result)


def fail(database: Database, taken: Claim, failure: Failure, max_attempts: int = 2) -> None:
    with database.transaction() as session:
        checks.fail(session, taken, failure, max_attempts=max_attempts)


def row(database: Database, check_id: str) -> Check:
    with database.transaction() as session:
        return session.get_one(Check, check_id)


def lapse(database: Database, max_attempts: int = 3, seconds: float = 31) -> list[str]:
    with database.transaction() as session:
        set_clock_ahead(session, seconds)
    with database.transaction() as session:
        return checks.reconcile(session, max_attempts=max_attempts)


def test_the_same_question_about_the_same_bytes_is_one_check(stocked: Database) -> None:
    with stocked.transaction() as session:
        add_file(session, "file-2")
        add_project(session, "proj-2", "other")
        add_file(session, "file-3", project_id="proj-2")
    first = ask(stocked)
    assert ask(stocked) == first
    others = [ask(stocked, "file-2"), ask(stocked, model_id=MODEL), ask(stocked, "file-3", "proj-2")]
    assert len({first, *others}) == 4
    with stocked.transaction() as session:
        session.get_one(Model, MODEL).facts = {"layers": 3}
    assert ask(stocked, model_id=MODEL) not in others, "another model under the same name is another question"


def test_a_claim_raises_the_fence_and_an_answer_ends_it(stocked: Database) -> None:
    taken = claimed(stocked)
    assert claim(stocked) is None, "nobody else gets it meanwhile"
    running = row(stocked, taken.check_id)
    assert (running.state, running.fence, running.worker_id, taken.fence) == ("running", 1, "w1", 1)
    finish(stocked, taken, {"rows": 3, "odd": "a\0b"})
    done = row(stocked, taken.check_id)
    assert (done.state, done.result, done.lease_until) == ("done", {"rows": 3, "odd": "a\ufffdb"}, None)
    assert done.finished_at is not None
    assert ask(stocked) == done.id
    assert claim(stocked) is None, "what is answered is not asked again"


def test_eight_workers_race_for_forty_checks(stocked: Database) -> None:
    with stocked.transaction() as session:
        for number in range(40):
            add_file(session, f"file-many-{number}")
    expected = {ask(stocked, f"file-many-{number}") for number in range(40)}
    taken: list[list[str]] = [[] for _ in range(8)]
    together = Barrier(8)

    def work(mine: list[str]) -> None:
        together.wait()
        while found := claim(stocked):
            mine.append(found.check_id)

    threads = [Thread(target=work, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(check_id for mine in taken for check_id in mine) == sorted(expected)


def test_a_lost_worker_changes_nothing_and_another_one_answers(stocked: Database) -> None:
    lost = claimed(stocked)
    with stocked.transaction() as session:
        checks.renew(session, lost)
    assert lapse(stocked) == [lost.check_id]
    again = claim(stocked)
    assert again is not None
    assert (again.check_id, again.fence) == (lost.check_id, 2)
    with pytest.raises(StaleFence):
        finish(stocked, lost, {"rows": 1})
    with pytest.raises(StaleFence):
        fail(stocked, lost, USER)
    with pytest.raises(StaleFence), stocked.transaction() as session:
        checks.renew(session, lost)
    finish(stocked, again, {"rows": 2})
    assert row(stocked, again.check_id).result == {"rows": 2}


def test_a_check_whose_worker_is_known_to_be_dead_waits_again_before_its_lease_is_over(stocked: Database) -> None:
    lost = claimed(stocked)

    def end_dead(fence: int) -> bool:
        with stocked.transaction() as session:
            return checks.end_dead(session, lost.check_id, fence, max_attempts=2)

    assert not end_dead(lost.fence + 1)
    assert end_dead(lost.fence)
    assert not end_dead(lost.fence), "it was ended already"
    again = claim(stocked)
    assert again is not None and (again.check_id, again.fence) == (lost.check_id, 2)


def test_too_many_lost_workers_fail_it_and_who_asks_some_minutes_later_begins_anew(stocked: Database) -> None:
    taken = claimed(stocked)
    assert lapse(stocked, max_attempts=1) == []
    for _ in range(2):
        assert ask(stocked) == taken.check_id
        failed = row(stocked, taken.check_id)
        assert failed.state == "failed", "who polls sees it"
        assert failed.error is not None and failed.error["code"] == "worker_lost"
    later(stocked)
    with stocked.transaction() as session:
        add_file(session, "file-2")
    other = ask(stocked, "file-2")
    assert ask(stocked) == taken.check_id
    anew = row(stocked, taken.check_id)
    assert (anew.state, anew.error, anew.finished_at, anew.fruitless_attempts) == ("waiting", None, None, 0)
    first = claim(stocked)
    assert first is not None and first.check_id == other, "it waits behind those that are there"


def later(database: Database) -> None:
    with database.transaction() as session:
        set_clock_ahead(session, 600)


@pytest.mark.parametrize("code", ["disk_full", "reader_killed", "out_of_memory", "host_out_of_memory"])
def test_what_was_the_workers_condition_is_tried_again(stocked: Database, code: str) -> None:
    fail(stocked, claimed(stocked), Failure(kind="resource", code=code, message="There was no room."))
    ask(stocked)
    assert claim(stocked) is None
    later(stocked)
    ask(stocked)
    assert claim(stocked) is not None


def test_a_failure_that_is_the_users_is_the_answer(stocked: Database) -> None:
    taken = claimed(stocked)
    fail(stocked, taken, USER)
    assert ask(stocked) == taken.check_id
    error = row(stocked, taken.check_id).error
    assert error is not None and error["code"] == "no_chat_template"
    later(stocked)
    ask(stocked)
    assert claim(stocked) is None


def test_infrastructure_gets_another_attempt(stocked: Database) -> None:
    fail(stocked, claimed(stocked), OURS)
    second = claim(stocked)
    assert second is not None and second.fence == 2
    fail(stocked, second, OURS)
    assert row(stocked, second.check_id).state == "failed"


def test_a_check_that_is_handed_back_waits_again(stocked: Database) -> None:
    for _ in range(5):
        taken = claimed(stocked)
        with stocked.transaction() as session:
            checks.hand_back(session, taken)
            assert checks.waiting(session)
            assert session.scalar(select(func.count()).where(Check.state == checks.State.waiting)) == 1
    assert row(stocked, taken.check_id).fruitless_attempts == 0


def test_a_file_that_can_not_be_read_has_the_status_error(stocked: Database) -> None:
    damage = {"code": "truncated_gzip", "message": "The file ends too early.", "line": 3}
    finish(stocked, claimed(stocked), {"rows": 2, "damage": damage})
    with stocked.transaction() as session:
        file = session.get_one(File, FILE)
    assert (file.status, file.status_details) == ("error", "The file ends too early.")


def test_a_file_that_another_answer_can_read_is_in_order_again(stocked: Database) -> None:
    with stocked.transaction() as session:
        file = session.get_one(File, FILE)
        file.status, file.status_details = "error", "The file ends too early."
    finish(stocked, claimed(stocked), {"rows": 2, "damage": None})
    with stocked.transaction() as session:
        file = session.get_one(File, FILE)
    assert (file.status, file.status_details) == ("processed", None)


def test_what_is_known_goes_with_the_file_and_with_the_model(stocked: Database) -> None:
    plain, with_model = ask(stocked), ask(stocked, model_id=MODEL)
    taken = claim(stocked)
    assert taken is not None and taken.check_id == plain
    with stocked.transaction() as session:
        models.unregister_base(session, MODEL)
        assert checks.read(session, with_model) is None
        assert checks.read(session, plain) is not None
        files.delete(session, PROJECT, FILE)
        assert checks.read(session, plain) is None
    with pytest.raises(StaleFence):
        finish(stocked, taken, {"rows": 1})


def test_of_the_answers_about_a_file_the_newest_are_kept(stocked: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each kind by itself; what waits for its answer stays."""
    monkeypatch.setitem(checks.KEPT, "preview", 3)

    def ask_for(lines: int) -> str:
        with stocked.transaction() as session:
            set_clock_ahead(session, lines)
            (file,) = about_file(files.hold(session, PROJECT, FILE)).files
            return checks.ask(session, PROJECT, Question("preview", {"lines": [lines]}, (file,))).id

    about = ask(stocked)
    finish(stocked, must_claim(stocked), {})
    asked = []
    for lines in range(1, 6):
        asked.append(ask_for(lines))
        finish(stocked, must_claim(stocked), {})
    waiting = [ask_for(lines) for lines in range(6, 8)]
    with stocked.transaction() as session:
        there = set(session.scalars(select(Check.id)))
    assert there == {about, *asked[-2:], *waiting}
    assert ask_for(1) not in asked, "it is asked anew"


def must_claim(database: Database) -> Claim:
    found = claim(database)
    assert found is not None
    return found
