"""`dpo logs`: what a job's processes printed."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from openai import APIResponse, RequestOptions

from cli.client import connected


def logs(job_id: str, attempt: int | None) -> Iterator[str]:
    """The logs of all its attempts, or of one, in pieces as they arrive."""
    # With this header the client hands over the answer without reading it.
    options: RequestOptions = {"headers": {"X-Stainless-Raw-Response": "stream"}}
    if attempt is not None:
        options["params"] = {"attempt": attempt}
    with connected() as client:
        path = f"/fine_tuning/jobs/{quote(job_id, safe='')}/log"
        answer = client.get(path, cast_to=APIResponse[bytes], options=options)
        try:
            yield from answer.iter_text()
        finally:
            answer.close()
