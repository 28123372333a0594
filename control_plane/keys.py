"""API keys: random, shown once, stored hashed, revocable."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane.database import dpo_now
from control_plane.errors import NotFound, Unauthenticated
from control_plane.ids import new_id
from control_plane.tables import ApiKey

PREFIX = "sk-dpo-"


def create(session: Session, project_id: str, name: str) -> tuple[ApiKey, str]:
    """A new key and its secret, `sk-dpo-` and 43 characters; nothing can show the secret again."""
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(id=new_id("key"), project_id=project_id, name=name, hint=secret[: len(PREFIX) + 4], hash=_hash(secret))
    session.add(key)
    session.flush()
    return key, secret


def authenticate(session: Session, secret: str) -> ApiKey:
    """The key behind a secret. Raises Unauthenticated for an unknown or revoked one."""
    key = session.scalars(select(ApiKey).where(ApiKey.hash == _hash(secret))).one_or_none()
    if key is None:
        raise Unauthenticated("This API key is not known here. `dpo keys create NAME` on the server makes one.")
    if key.revoked_at is not None:
        raise Unauthenticated(
            f"The API key {key.hint}… ({key.name}) was revoked. `dpo keys create NAME` on the server makes a new one."
        )
    return key


def list_keys(session: Session, project_id: str) -> Sequence[ApiKey]:
    """The project's keys, revoked ones too, oldest first."""
    return session.scalars(select(ApiKey).where(ApiKey.project_id == project_id).order_by(ApiKey.id)).all()


def revoke(session: Session, project_id: str, key_id: str) -> ApiKey:
    """From the next request on the key is refused; revoking twice changes nothing."""
    key = session.scalars(select(ApiKey).where(ApiKey.project_id == project_id, ApiKey.id == key_id)).one_or_none()
    if key is None:
        raise NotFound(f"There is no API key {key_id!r} in this project; `dpo keys list` shows them.", param="key_id")
    if key.revoked_at is None:
        key.revoked_at = session.scalars(select(dpo_now())).one()
        session.flush()
    return key


def _hash(secret: str) -> str:
    """Plain SHA-256, no salt and no slow hash: 256 random bits can't be guessed, and the unique index finds them."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
