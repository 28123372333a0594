"""The same running API that tests/api uses."""

from tests.api.conftest import (
    api,
    client,
    database_url,
    make_key,
    secret,
    serve,
    settings,
    shared_api,
    shared_settings,
)

__all__ = ["api", "client", "database_url", "make_key", "secret", "serve", "settings", "shared_api", "shared_settings"]
