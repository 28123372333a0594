"""The ids under which a job publishes its models: names that the Hub's clients accept."""

from __future__ import annotations

import re

from control_plane.errors import InvalidRequest

MAX_ID = 96
"""The Hub's limit on `{namespace}/{name}`."""

LONGEST_STEP = len("-step-1000000")
MERGED = "merged"
SHORT_ID = 8
"""Characters of the job's id, from its random end, that tell two results apart."""


def result_name(project: str, start_id: str, suffix: str | None, job_id: str) -> str:
    """`{project}/{start's name}-{suffix}-{short job id}`, with room left for `-step-1000000`.

    The start's name is cut where there is no room for all of it. InvalidRequest for a suffix of which
    nothing is left.
    """
    short = job_id[-SHORT_ID:]
    ending = short
    if suffix is not None:
        readable = safe(suffix)
        if not readable:
            raise InvalidRequest(
                f"The suffix {suffix!r} becomes part of the model's name, but has no letter a-z or digit; add some.",
                param="suffix",
                code="invalid_value",
            )
        ending = f"{readable}-{short}"
    room = MAX_ID - LONGEST_STEP - len(f"{project}/")
    start = safe(start_id.rpartition("/")[2])
    start = safe(start[: max(0, room - len(ending) - 1)])
    name = f"{start}-{ending}" if start else ending
    return f"{project}/{safe(name[-room:])}"


def best_name(result_name: str) -> str:
    """The id under which a job's best checkpoint by validation can be had as well."""
    return f"{result_name}-best"


def merged_name(model_id: str) -> str:
    """The id of an adapter's merged weights."""
    return f"{model_id}-{MERGED}"


def safe(text: str) -> str:
    """`text` with everything that the Hub refuses in a name replaced by single `-` and `.`, and none at its ends."""
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    text = re.sub(r"[-.]*\.[-.]*", ".", re.sub(r"-{2,}", "-", text))
    return text.strip("-._")
