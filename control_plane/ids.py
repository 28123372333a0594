"""Ids: a prefix that names the kind, and a ULID, so that ids sort by age."""

from __future__ import annotations

from ulid import ULID


def new_id(prefix: str) -> str:
    """A new id such as `ftjob-01jd…`; `-` because the Hub's clients refuse other separators."""
    return f"{prefix}-{str(ULID()).lower()}"
