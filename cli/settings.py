"""The settings of a command, with what is missing or wrong said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from cli.errors import CommandFailed


@contextmanager
def clear_settings() -> Iterator[None]:
    """Names the environment variables behind a ValidationError, never their values: those may be secret."""
    try:
        yield
    except ValidationError as error:
        missing = [_variable(problem["loc"]) for problem in error.errors() if problem["type"] == "missing"]
        wrong = [
            f"{_variable(problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
            if problem["type"] != "missing"
        ]
        parts = [f"wrong in the environment: {'; '.join(wrong)}"] if wrong else []
        if missing:
            parts.append(f"not set in the environment: {', '.join(missing)}. `dpo up` needs none of them")
        raise CommandFailed(". ".join(parts)) from None


def _variable(location: tuple[int | str, ...]) -> str:
    return f"DPO_{'.'.join(map(str, location)).upper()}"
