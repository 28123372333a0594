"""docs/security.md: every attack has a test, and every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

CLASSES = (
    "jobs without a key",
    "remote code in a model",
    "a pickle in an upload",
    "path traversal in a file's name",
    "path traversal in a route, also encoded twice",
    "path traversal in a Hub route",
    "shell characters",
    "SSRF through a webhook",
    "SSRF by a redirect",
    "SSRF by DNS rebinding",
    "escape from a template's sandbox",
    "decompression bomb",
    "deep JSON",
    "a line of a gigabyte",
    "a form of 10,000 parts",
    "guessing a key by the time of the answer",
    "session fixation",
)
"""What services of this kind were attacked with."""


def test_every_class_of_attack_has_a_row() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert [name for name in CLASSES if f"\n| {name}" not in page] == []


def test_every_named_test_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| attack")]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, f"no test is named for: {row}"
        for path, name in named:
            source = (ROOT / path).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{path} has no {name}"
