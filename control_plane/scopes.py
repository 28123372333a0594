"""What API keys may do."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """What a key may do beyond reading its project's files and jobs, which every key may."""

    files_write = "files:write"
    """Upload and delete files."""
    jobs_write = "jobs:write"
    """Create and steer jobs and sweeps, and delete the models that they made."""
    models_read = "models:read"
    """See models and download them."""
    admin = "admin"
    """All of the others, and the project's audit log."""


USUAL = (Scope.files_write, Scope.jobs_write, Scope.models_read)
"""What a key gets when nothing else is asked for: all that the openai client and the Hub's clients do."""
