from __future__ import annotations

from typing import Any

import pytest

from dpo_core.model_folder import context_length

LONG = {"max_position_embeddings": 131_072}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LONG, 131_072),
        ({"n_positions": 1024}, 1024),
        ({}, None),
        (LONG | {"rope_parameters": {"rope_type": "llama3", "original_max_position_embeddings": 8192}}, 131_072),
        # longrope turns all positions another way as soon as one sequence is longer than the original context
        (LONG | {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096}}, 4096),
        (LONG | {"original_max_position_embeddings": 4096, "rope_scaling": {"type": "longrope"}}, 4096),
    ],
)
def test_context_length(config: dict[str, Any], expected: int | None) -> None:
    assert context_length(config) == expected
