"""The service as `dpo submit`, `dpo watch` and `dpo download` see it: the `openai` client, and clear errors."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from openai import APIConnectionError, APIStatusError, AuthenticationError, OpenAI, OpenAIError
from pydantic import SecretStr

from cli.data_folder import Announcement, DataFolder, default_data
from cli.errors import CommandFailed
from cli.words import command
from control_plane.settings import ClientSettings

LONG = 120.0
"""Seconds without a byte. Behind a large upload the server still has to make it durable."""


@contextmanager
def connected() -> Iterator[OpenAI]:
    """A client of the service that OPENAI_BASE_URL and OPENAI_API_KEY name; where neither is set, of our own `dpo up`.

    Every refusal and every broken connection in the block becomes a CommandFailed of one line.
    """
    settings = _settings()
    if settings.base_url is None and settings.api_key is None:
        raise CommandFailed(f"no service runs in {default_data()}, and OPENAI_BASE_URL is not set; {_way_in()}")
    if settings.base_url is None or settings.api_key is None:
        missing = "OPENAI_BASE_URL" if settings.base_url is None else "OPENAI_API_KEY"
        raise CommandFailed(f"{missing} is not set in the environment; {_way_in()}")
    timeout = httpx2.Timeout(LONG, connect=5)
    try:
        with OpenAI(base_url=settings.base_url, api_key=settings.api_key.get_secret_value(), timeout=timeout) as client:
            yield client
    except AuthenticationError as error:
        refusal = f"{settings.base_url} refuses OPENAI_API_KEY: {reason(error)}"
        way_in = _what_to_export()
        raise CommandFailed(f"{refusal.removesuffix('.')}; {way_in}" if way_in else refusal) from None
    except APIStatusError as error:
        raise CommandFailed(reason(error)) from None
    except APIConnectionError as error:
        raise CommandFailed(f"nothing answers at {settings.base_url} ({reason(error)}); {_way_in()}") from None
    except (OpenAIError, httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise CommandFailed(f"{settings.base_url} could not be understood: {reason(error)}") from None


def reason(error: Exception) -> str:
    """What went wrong, in the server's words where it said any."""
    if isinstance(error, APIStatusError):
        said = error.body.get("message") if isinstance(error.body, dict) else None
        return str(said or f"the server answered {error.status_code}")
    return str(error.__cause__ or error) or type(error).__name__


def _settings() -> ClientSettings:
    settings = ClientSettings()
    running = _embedded() if settings.base_url is None and settings.api_key is None else None
    if running is None:
        return settings
    key = SecretStr(Path(running.api_key_file).read_text().strip())
    return ClientSettings(base_url=running.base_url, api_key=key)


def _way_in() -> str:
    return _what_to_export() or (
        f"start the service with `{command('up')}` and export what it prints, or what its operator gave you"
    )


def _what_to_export() -> str | None:
    running = _embedded()
    if running is None:
        return None
    return (
        f"for the service that runs in {default_data()}: export OPENAI_BASE_URL={running.base_url} "
        f'OPENAI_API_KEY="$(cat {shlex.quote(running.api_key_file)})"'
    )


def _embedded() -> Announcement | None:
    """The embedded service of the default data folder, where one runs."""
    try:
        return DataFolder(default_data()).announcement()
    except PermissionError:  # another user's
        return None
