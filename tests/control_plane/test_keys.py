from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from control_plane import keys, projects
from control_plane.database import Database
from control_plane.errors import InvalidRequest, NotFound, Unauthenticated
from control_plane.scopes import Scope
from control_plane.tables import ApiKey
from tests.control_plane.rows import set_clock_ahead


def test_a_key_opens_its_project_until_it_is_revoked(database: Database) -> None:
    with database.transaction() as session:
        project = projects.ensure(session, "default")
        key, secret = keys.create(session, project.id, "laptop")
        assert keys.authenticate(session, secret).project_id == project.id
        keys.revoke(session, project.id, key.id)
        first = key.revoked_at
        keys.revoke(session, project.id, key.id)
        assert key.revoked_at == first
        with pytest.raises(Unauthenticated, match=r"sk-dpo-....… \(laptop\) was revoked"):
            keys.authenticate(session, secret)
        assert [(known.id, valid) for known, valid in keys.list_keys(session, project.id)] == [(key.id, False)]


def test_the_secret_is_random_and_stored_as_a_hash_alone(database: Database) -> None:
    with database.transaction() as session:
        project = projects.ensure(session, "default")
        made = [keys.create(session, project.id, "same name") for _ in range(2)]
    secrets = [secret for _, secret in made]
    assert len(set(secrets)) == 2
    for key, secret in made:
        assert secret.startswith("sk-dpo-") and len(secret) == len("sk-dpo-") + 43
        assert key.hash == hashlib.sha256(secret.encode()).hexdigest()
        assert secret.startswith(key.hint) and len(key.hint) == len("sk-dpo-") + 4


def test_a_key_expires(database: Database) -> None:
    with database.transaction() as session:
        project = projects.ensure(session, "default")
        key, secret = keys.create(session, project.id, "trial", expires_in=timedelta(hours=12))
        set_clock_ahead(session, 11 * 3600)
        assert keys.authenticate(session, secret).id == key.id
        set_clock_ahead(session, 13 * 3600)
        with pytest.raises(Unauthenticated, match=r"\(trial\) expired on 20\d\d-"):
            keys.authenticate(session, secret)
        assert [valid for _, valid in keys.list_keys(session, project.id)] == [False]


def test_scopes_are_known_ones_in_one_order(database: Database) -> None:
    with database.transaction() as session:
        project = projects.ensure(session, "default")
        assert keys.create(session, project.id, "usual")[0].scopes == ["files:write", "jobs:write", "models:read"]
        made, _ = keys.create(session, project.id, "k", scopes=[Scope.admin, "files:write", "files:write"])
        assert made.scopes == ["files:write", "admin"]
        with pytest.raises(InvalidRequest, match=r"no scope 'file:write'.*Did you mean .files:write"):
            keys.create(session, project.id, "k", scopes=["file:write"])


def test_its_use_is_noted_once_a_minute(database: Database) -> None:
    with database.transaction() as session:
        key, secret = keys.create(session, projects.ensure(session, "default").id, "k")
    seen = []
    for ahead in (0, 30, 100):
        with database.transaction() as session:
            set_clock_ahead(session, ahead)
            keys.authenticate(session, secret)
        with database.transaction() as session:
            seen.append(session.get_one(ApiKey, key.id).last_used_at)
    first, second, third = seen
    assert first is not None and third is not None
    assert first == second
    assert third - first > timedelta(seconds=90)


def test_a_key_is_found_by_the_hash_of_the_whole_secret_alone(database: Database) -> None:
    """No comparison of ours stops earlier for a secret that begins rightly: the answer's time tells nothing of it."""
    with database.transaction() as session:
        _, secret = keys.create(session, projects.ensure(session, "default").id, "k")
    asked: list[tuple[str, Any]] = []
    event.listen(database.engine, "before_cursor_execute", lambda *call: asked.append((call[2], call[3])))
    for wrong in (secret[:-1] + ("a" if secret[-1] != "a" else "b"), "x" * len(secret)):
        asked.clear()
        with database.transaction() as session, pytest.raises(Unauthenticated):
            keys.authenticate(session, wrong)
        ((statement, parameters),) = asked
        assert "api_keys.hash = " in statement
        assert hashlib.sha256(wrong.encode()).hexdigest() in parameters.values()
        assert not any(isinstance(value, str) and wrong[:12] in value for value in parameters.values())


@pytest.mark.parametrize("secret", ["", "sk-dpo-wrong", "\udc80", "x" * 100_000])
def test_unknown_keys(database: Database, secret: str) -> None:
    with database.transaction() as session, pytest.raises(Unauthenticated, match="dpo keys create"):
        keys.authenticate(session, secret)


def test_a_project_revokes_only_its_own_keys(database: Database) -> None:
    with database.transaction() as session:
        mine, other = projects.ensure(session, "mine"), projects.ensure(session, "other")
        key, _ = keys.create(session, mine.id, "k")
        with pytest.raises(NotFound):
            keys.revoke(session, other.id, key.id)
        assert keys.list_keys(session, other.id) == []


def test_projects(database: Database) -> None:
    with database.transaction() as session:
        assert projects.ensure(session, "team-a").id == projects.ensure(session, "team-a").id
        for name in ("base", "", "-a", "a-", "a--b", "a..b", "a/b", "a b", "x" * 97, "repo.git"):
            with pytest.raises(InvalidRequest):
                projects.ensure(session, name)
