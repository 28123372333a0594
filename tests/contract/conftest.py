"""The same running API that tests/api uses."""

from tests.api.conftest import api, client, make_key, secret, serve

__all__ = ["api", "client", "make_key", "secret", "serve"]
