"""several_runs.py, with a ZeRO-3 that releases every weight at once and reduces gradients often, as it does with large
models: of tiny ones DeepSpeed keeps all."""

from __future__ import annotations

import sys
from typing import Any

from dpo_core import engine
from tests.dpo_core.several_runs import main

RELEASING = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_reuse_distance": 0,
    "reduce_bucket_size": 3000,
}
usual = engine.engine_config


def releasing(*arguments: Any) -> dict[str, Any]:
    config = usual(*arguments)
    if config["zero_optimization"]["stage"] == 3:
        config["zero_optimization"] |= RELEASING
    return config


if __name__ == "__main__":
    engine.engine_config = releasing
    main(sys.argv[1:])
