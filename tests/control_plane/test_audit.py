from __future__ import annotations

from pathlib import Path

from control_plane import audit, deliveries, files, jobs, keys, models, pauses, projects, sweeps, webhooks
from control_plane.audit import Actor
from control_plane.database import Database
from control_plane.job_requests import read_request
from control_plane.job_states import State
from control_plane.project_removal import delete_project
from control_plane.quotas import Limits
from control_plane.repetition import Repeatable
from control_plane.settings import Settings
from control_plane.sweep_requests import read_sweep
from control_plane.tables import Project
from tests.control_plane.rows import FILE, PROJECT, add_file, add_model, body


def test_every_change_leaves_an_entry(stocked: Database, tiny_model: Path) -> None:
    with stocked.transaction(actor=Actor("key-7", "req-9")) as session:
        key, secret = keys.create(session, PROJECT, "a name")
        keys.revoke(session, PROJECT, key.id)
        keys.revoke(session, PROJECT, key.id)  # changes nothing
        job = jobs.create(session, PROJECT, read_request(body()))
        job.state = State.queued.value
        pauses.pause(session, PROJECT, job.id)
        pauses.resume(session, PROJECT, job.id)
        jobs.cancel(session, PROJECT, job.id)
        sweep = sweeps.create(session, PROJECT, read_sweep(body(training={"beta": [0.1, 0.2]})))
        sweeps.cancel(session, PROJECT, sweep.id)
        add_model(session, "default/m", project_id=PROJECT, kind="checkpoint", path=None, job_id=job.id)
        models.delete(session, PROJECT, "default/m")
        files.delete(session, PROJECT, FILE)
        found = audit.entries(session, PROJECT, limit=100).items
    told = [(entry.action, entry.target) for entry in reversed(found)]
    assert [action for action, _ in told if action != "job.cancelled"] == [
        "key.created",
        "key.revoked",
        "job.created",
        "job.paused",
        "job.resumed",
        "sweep.created",
        "sweep.cancelled",
        "model.deleted",
        "file.deleted",
    ]
    assert ("job.cancelled", job.id) in told
    assert told[0] == ("key.created", key.id)
    assert {(entry.actor, entry.request_id) for entry in found} == {("key-7", "req-9")}
    text = repr([vars(entry) for entry in found])
    assert secret not in text
    assert key.hash not in text
    assert "a name" not in text

    with stocked.transaction() as session:
        models.register_base(session, tiny_model, "m")
        models.unregister_base(session, "base/m")
        (gone, made) = audit.entries(session, None, limit=2).items
        assert [(entry.actor, entry.action) for entry in (made, gone)] == [
            ("operator", "model.registered"),
            ("operator", "model.unregistered"),
        ]


def test_webhooks(stocked: Database, settings: Settings) -> None:
    """Changes of where a project is told, and with what signature, by whoever makes them; and no secret."""
    with stocked.transaction(actor=Actor("key-7", "req-9")) as session:
        endpoint = webhooks.create(session, PROJECT, {"url": "https://hooks.example/a"}, settings)
        secrets = [endpoint.secret]
        webhooks.change(session, PROJECT, endpoint.id, {"url": "https://hooks.example/b"}, settings)
        webhooks.change(session, PROJECT, endpoint.id, {"url": "https://hooks.example/b"}, settings)  # changes nothing
        secrets.append(webhooks.rotate_secret(session, PROJECT, endpoint.id, {}).secret)
        sample = deliveries.test(session, PROJECT, endpoint.id, "fine_tuning.job.failed").id
        deliveries.redeliver(session, PROJECT, endpoint.id, sample)
        webhooks.remove(session, PROJECT, endpoint.id)
        found = audit.entries(session, PROJECT, limit=100).items
    told = [(entry.action, entry.target) for entry in reversed(found)]
    changes = ("created", "changed", "secret_rotated", "tested", "redelivered", "deleted")
    assert told == [(f"webhook.{what}", endpoint.id) for what in changes]
    assert {(entry.actor, entry.request_id) for entry in found} == {("key-7", "req-9")}
    text = repr([vars(entry) for entry in found])
    assert not [word for word in (*secrets, "hooks.example") if word in text]


def test_a_secret_that_is_shown_again(stocked: Database, settings: Settings) -> None:
    """To whoever repeats the request that made the endpoint, also after a rotation."""
    body = {"url": "https://hooks.example/a"}
    with stocked.transaction(actor=Actor("key-7", "req-9")) as session:
        asked = Repeatable("an-idempotency-key", "key-7")
        endpoint = webhooks.create(session, PROJECT, body, settings, repeatable=asked)
        secret = webhooks.rotate_secret(session, PROJECT, endpoint.id, {}).secret
        assert webhooks.create(session, PROJECT, body, settings, repeatable=asked).secret == secret
        newest = audit.entries(session, PROJECT, limit=1).items[0]
    assert (newest.action, newest.target, newest.actor) == ("webhook.secret_shown", endpoint.id, "key-7")


def test_a_change_that_is_rolled_back_leaves_none(stocked: Database) -> None:
    class Halt(Exception):
        pass

    try:
        with stocked.transaction() as session:
            keys.create(session, PROJECT, "k")
            raise Halt
    except Halt:
        pass
    with stocked.transaction() as session:
        assert audit.entries(session, PROJECT).items == []


def test_a_project_s_entries_outlive_it(stocked: Database) -> None:
    with stocked.transaction() as session:
        project = projects.ensure(session, "short-lived")
        projects.set_limits(session, project, Limits(gpus=1))
        add_file(session, "file-9", project_id=project.id)
        delete_project(session, "short-lived")
    with stocked.transaction() as session:
        assert session.get(Project, project.id) is None
        actions = [entry.action for entry in audit.entries(session, project.id).items]
        assert actions == ["project.deleted", "project.limits_changed", "project.created"]
        assert session.get(Project, PROJECT) is not None
