"""Every result's name is one that the Hub's own client accepts, with its longest checkpoint too."""

from __future__ import annotations

import pytest
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from control_plane import projects
from control_plane.errors import InvalidRequest
from control_plane.ids import new_id
from control_plane.result_names import result_name, safe

JOB = "ftjob-01jdabcdefgh"


def test_the_parts_of_a_name() -> None:
    assert result_name("default", "base/tiny", "My run #2", JOB) == "default/tiny-My-run-2-abcdefgh"
    assert result_name("default", "default/tiny-x-step-5", None, JOB) == "default/tiny-x-step-5-abcdefgh"


def test_a_long_start_is_cut_and_the_suffix_kept() -> None:
    name = result_name("default", f"base/{'m' * 90}", "s" * 64, JOB)
    assert name == f"default/m-{'s' * 64}-abcdefgh"
    assert len(f"{name}-step-1000000") <= 96


def test_a_suffix_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="has no letter a-z or digit") as refusal:
        result_name("default", "base/tiny", "日本語", JOB)
    assert refusal.value.param == "suffix"


@given(
    project=st.from_regex(rf"[a-z][a-z0-9]{{0,{projects.LONGEST_NAME - 1}}}", fullmatch=True),
    start=st.text(max_size=100),
    suffix=st.none() | st.text(min_size=1, max_size=64),
)
def test_the_hubs_client_accepts_any_name(project: str, start: str, suffix: str | None) -> None:
    if suffix is not None and not safe(suffix):
        return
    job_id = new_id("ftjob")
    name = result_name(project, f"base/{start}", suffix, job_id)
    assert name.startswith(f"{project}/") and name.endswith(job_id[-8:])
    validate_repo_id(name)
    validate_repo_id(f"{name}-step-1000000")
