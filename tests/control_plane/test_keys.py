from __future__ import annotations

import hashlib

import pytest

from control_plane import keys, projects
from control_plane.database import Database
from control_plane.errors import InvalidRequest, NotFound, Unauthenticated


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
        assert [known.id for known in keys.list_keys(session, project.id)] == [key.id]


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
