"""API keys: random, shown once, stored hashed, scoped, revocable; they may expire."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from datetime import timedelta

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from control_plane import audit
from control_plane.database import dpo_now
from control_plane.errors import InvalidRequest, NotFound, Unauthenticated
from control_plane.ids import new_id
from control_plane.scopes import USUAL, Scope
from control_plane.tables import ApiKey, Project
from control_plane.validation import nearest

PREFIX = "sk-dpo-"

USE_NOTED = timedelta(minutes=1)
"""How exact `last_used_at` is: a key that is used all the time costs one write in so long."""


def create(
    session: Session,
    project_id: str,
    name: str,
    *,
    scopes: Collection[str] = USUAL,
    expires_in: timedelta | None = None,
    requests_per_minute: int | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its secret, `sk-dpo-` and 43 characters; nothing can show the secret again.

    Raises InvalidRequest for a scope that there is not. `requests_per_minute`: another limit than the setting's.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        id=new_id("key"),
        project_id=project_id,
        name=name,
        hint=secret[: len(PREFIX) + 4],
        hash=_hash(secret),
        scopes=_known(scopes),
        requests_per_minute=requests_per_minute,
    )
    if expires_in is not None:
        key.expires_at = session.scalars(select(dpo_now() + expires_in)).one()
    session.add(key)
    audit.record(session, project_id, "key.created", key.id)
    session.flush()
    return key, secret


def authenticate(session: Session, secret: str) -> ApiKey:
    """The key behind a secret. Raises Unauthenticated for an unknown, revoked or expired one.

    Found by the hash of the whole secret, so no comparison takes longer for a secret that is nearly right.
    """
    rarely = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < dpo_now() - USE_NOTED)
    query = select(ApiKey, ApiKey.expires_at <= dpo_now(), rarely).where(ApiKey.hash == _hash(secret))
    found = session.execute(query).one_or_none()
    if found is None:
        raise Unauthenticated("This API key is not known here. `dpo keys create NAME` on the server makes one.")
    key, is_expired, not_noted = found
    if key.revoked_at is not None or is_expired:
        how = "was revoked" if key.revoked_at is not None else f"expired on {key.expires_at:%Y-%m-%d}"
        raise Unauthenticated(
            f"The API key {key.hint}… ({key.name}) {how}. `dpo keys create NAME` on the server makes a new one."
        )
    if not_noted:
        session.execute(update(ApiKey).where(ApiKey.id == key.id, rarely).values(last_used_at=dpo_now()))
    return key


def owner(session: Session, key_id: str) -> tuple[ApiKey, Project]:
    """A known key and its project."""
    found = select(ApiKey, Project).join(Project, Project.id == ApiKey.project_id).where(ApiKey.id == key_id)
    key, project = session.execute(found).one()
    return key, project


def list_keys(session: Session, project_id: str) -> Sequence[tuple[ApiKey, bool]]:
    """The project's keys, revoked and expired ones too, oldest first; each with whether it still opens anything."""
    valid = ApiKey.revoked_at.is_(None) & or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > dpo_now())
    query = select(ApiKey, valid).where(ApiKey.project_id == project_id).order_by(ApiKey.id)
    return [(key, is_valid) for key, is_valid in session.execute(query)]


def revoke(session: Session, project_id: str, key_id: str) -> ApiKey:
    """From the next request on the key is refused; revoking twice changes nothing."""
    key = session.scalars(select(ApiKey).where(ApiKey.project_id == project_id, ApiKey.id == key_id)).one_or_none()
    if key is None:
        raise NotFound(f"There is no API key {key_id!r} in this project; `dpo keys list` shows them.", param="key_id")
    if key.revoked_at is None:
        key.revoked_at = session.scalars(select(dpo_now())).one()
        audit.record(session, project_id, "key.revoked", key.id)
        session.flush()
    return key


def _known(scopes: Collection[str]) -> list[str]:
    """In the order of `Scope`, each once."""
    known = [scope.value for scope in Scope]
    for scope in scopes:
        if scope not in known:
            raise InvalidRequest(
                f"There is no scope {scope!r}.{nearest(scope, known)} A key takes {', '.join(known)}.", param="scope"
            )
    return [scope for scope in known if scope in scopes]


def _hash(secret: str) -> str:
    """Plain SHA-256, no salt and no slow hash: 256 random bits can't be guessed, and the unique index finds them."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
