"""The unmodified openai client waits as it is told, and succeeds."""

from __future__ import annotations

import pytest
from openai import OpenAI, RateLimitError

from control_plane import keys, projects
from control_plane.database import Database
from tests.api.conftest import Api


def test_its_retries_succeed_by_waiting(api: Api, database: Database) -> None:
    """One request a second is allowed; the bucket's 60 are taken first."""
    with database.transaction() as session:
        _, secret = keys.create(session, projects.ensure(session, "default").id, "k", requests_per_minute=60)
    with OpenAI(base_url=f"{api.url}/v1", api_key=secret, max_retries=0, timeout=30) as hasty:
        with pytest.raises(RateLimitError, match="60 times a minute"):
            for _ in range(200):
                hasty.models.list()
        patient = hasty.with_options(max_retries=2)
        answers = [patient.models.with_raw_response.list() for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert any(answer.retries_taken > 0 for answer in answers)
