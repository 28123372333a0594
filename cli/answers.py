"""Answers of the service that take a worker some time: asked for until they are there."""

from __future__ import annotations

import time
from typing import Any, cast

from openai import OpenAI
from rich.console import Console

from cli.errors import CommandFailed

WAIT_SECONDS = 30
"""How long one request waits at the service."""

POLL_SECONDS = 0.2

Json = dict[str, Any]


def answer(
    client: OpenAI, path: str, console: Console, *, params: Json | None = None, body: Json | None = None
) -> Json:
    """What GET `path`, or POST with a `body`, answers in the end. Raises CommandFailed where there is no answer."""
    query: Json = {"wait": WAIT_SECONDS, **(params or {})}
    with console.status("a worker looks into it"):
        while True:
            if body is None:
                found = cast("Json", client.get(path, cast_to=object, options={"params": query}))
            else:
                found = cast("Json", client.post(path, cast_to=object, body=body, options={"params": query}))
            if found["state"] not in ("waiting", "running"):
                break
            time.sleep(POLL_SECONDS)
    if found["state"] == "failed":
        raise CommandFailed(found["error"]["message"])
    return found
