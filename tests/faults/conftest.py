from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable

import pytest


@pytest.fixture(scope="module")
def seed() -> int:
    return int(os.environ.get("DPO_FAULT_SEED") or random.SystemRandom().randrange(10**6))


@pytest.fixture
def tell(seed: int, capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Says what is about to happen, whether the test passes or not."""

    def say(plan: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\nDPO_FAULT_SEED={seed}: {plan}\n")

    return say
