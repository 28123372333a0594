"""A checkpoint is its project's alone: it has no permissions, and none can be given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from control_plane import models
from control_plane.database import Database
from tests.control_plane.model_folders import make_folder


def test_none_are_there_and_none_can_be_given(
    client: OpenAI, database: Database, tmp_path: Path, make_key: Callable[[str], str]
) -> None:
    with database.transaction() as session:
        model = models.register_base(session, make_folder(tmp_path / "tiny")).id
    permissions = client.fine_tuning.checkpoints.permissions
    assert list(permissions.list(model)) == []
    with pytest.raises(openai.BadRequestError, match=r"can't be shared.*dpo models add"):
        permissions.create(model, project_ids=["proj-x"])
    with pytest.raises(openai.NotFoundError, match="no permission 'cp-1'"):
        permissions.delete("cp-1", fine_tuned_model_checkpoint=model)
    for ask in (permissions.list, lambda name: permissions.create(name, project_ids=["proj-x"])):
        with pytest.raises(openai.NotFoundError, match="no model 'default/none'"):
            list(ask("default/none"))
