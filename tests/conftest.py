"""Fixtures that every suite shares; the makers behind them are in tests/makers.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.makers import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's folder. Read only: it is shared."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
