"""The validation metrics by which a run can be judged, and which way is better. docs/metrics.md defines them.

Imports nothing but the standard library.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal

Direction = Literal["lower", "higher"]

BETTER: dict[str, dict[str, Direction]] = {
    "dpo": {
        "loss": "lower",
        "rewards/accuracies": "higher",
        "rewards/margins": "higher",
        "bradley_terry": "higher",
        "gradient_weight": "lower",
    },
    "supervised": {"loss": "lower", "perplexity": "lower", "token_accuracy": "higher"},
}
"""By method. The others are neither good nor bad by themselves: both rewards of a good run may fall."""

COMPARED = {"dpo": "rewards/accuracies", "supervised": "loss"}
"""By what jobs of one method are compared: a preference loss depends on β and on which one it is, accuracy doesn't."""

NEEDS_VALIDATION = (
    "`early_stopping` judges by validation data, and there is none. Give a validation file, or a "
    "`validation_fraction` above 0 of a training file that has enough rows."
)


def cannot_judge(metric: str, method: str) -> str | None:
    """Why a run of `method` can't be judged by `metric`, with the way out; None where it can."""
    known = BETTER[method]
    if metric in known:
        return None
    like = get_close_matches(metric, known, n=1)
    question = f" Did you mean `{like[0]}`?" if like else ""
    return (
        f"`early_stopping.metric` {metric!r} is no validation metric of method `{method}` that can be better or "
        f"worse.{question} Known: {', '.join(known)}."
    )
