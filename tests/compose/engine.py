"""The compose file under whichever container engine there is: docker, or podman with podman-compose."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Compose:
    """One project of the compose file: containers, networks and volumes that nobody else sees."""

    engine: str
    command: tuple[str, ...]
    project: str
    env_file: Path
    variables: dict[str, str] = field(default_factory=dict)
    """What the compose file interpolates besides the secrets."""

    def __call__(self, *arguments: str, seconds: float = 300) -> str:
        """`docker compose ARGUMENTS`; returns what it wrote to stdout."""
        project = ("--project-name", self.project, "--env-file", str(self.env_file))
        return run([*self.command, *project, *arguments], self.variables, seconds)

    def engine_run(self, *arguments: str, seconds: float = 120) -> str:
        """`docker ARGUMENTS`."""
        return run([self.engine, *arguments], {}, seconds)

    def container(self, service: str) -> str:
        """The id of a service's container, whether it runs or not."""
        labels = {"project": self.project, "service": service}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        return self.engine_run("ps", "--all", "--quiet", *filters).strip()

    def state(self, service: str) -> dict[str, Any]:
        """`State` of `docker inspect`."""
        state: dict[str, Any] = json.loads(self.engine_run("inspect", self.container(service)))[0]["State"]
        return state

    def healthy(self, service: str) -> bool:
        """Whether the service's own health check passes."""
        if self.engine == "podman":
            # Podman's timers are systemd's; where there is none the checks run when somebody asks.
            try:
                self.engine_run("healthcheck", "run", self.container(service))
            except AssertionError:
                return False
            return True
        return bool(self.state(service)["Health"]["Status"] == "healthy")


def run(command: list[str], variables: dict[str, str], seconds: float) -> str:
    """Raises AssertionError with the command's own words when it fails."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def find_engine() -> tuple[str, tuple[str, ...]] | None:
    """The engine and its compose command, if both are there and answer."""
    candidates: list[tuple[str, tuple[str, ...]]] = [
        ("docker", ("docker", "compose")),
        ("podman", ("podman-compose",)),
    ]
    for engine, compose in candidates:
        if all(map(shutil.which, (engine, compose[0]))) and _answers(engine, "info") and _answers(*compose, "version"):
            return engine, compose
    return None


def _answers(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
