"""The tokens that two sequences begin with: what an answer shares with its prompt, and an answer with another."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(first: Sequence[int] | str, second: Sequence[int] | str) -> int:
    """Tokens (of texts: characters) before the two sequences differ."""
    limit = min(len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    low, high = 0, limit  # the first `low` are equal, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low
