from __future__ import annotations

import logging
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.compose.engine import REPOSITORY, Compose, find_engine
from tests.makers import make_tiny_model

logger = logging.getLogger(__name__)


@pytest.fixture
def compose(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Compose]:
    """A project of its own with fresh secrets, its image built, nothing started; removed at the end, with its data.

    What its containers said stays in pytest's folder of the test, as containers.log.
    """
    if "DPO_COMPOSE_TEST" not in os.environ:
        pytest.skip("builds an image and starts containers: run it by `make compose-test`")
    caplog.set_level(logging.WARNING, logger="httpx2")  # a line for every request that polls
    found = find_engine()
    if found is None:
        pytest.skip("no containers here: neither docker with its compose plugin nor podman with podman-compose answers")
    env_file = tmp_path / ".env"
    subprocess.run([REPOSITORY / "deploy" / "make-env", env_file], check=True)
    # The container's user is another one: pytest's folders are closed to it.
    models = tmp_path / "models"
    make_tiny_model(models / "tiny", hidden=64, layers=4)
    for folder in (models, *models.rglob("*")):
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    variables = {"DPO_PORT": str(port), "DPO_MODELS": str(models), "DPO_CPU_SLOTS": "2"}
    project = Compose(*found, f"dpo-test-{uuid4().hex[:8]}", env_file, variables)
    if "DPO_IMAGE" not in os.environ:
        logger.info("building the image; DPO_IMAGE names one that is there already")
        project("build", seconds=3600)
    try:
        yield project
    finally:
        (tmp_path / "containers.log").write_text(project("logs"))
        project("down", "--volumes", seconds=600)
