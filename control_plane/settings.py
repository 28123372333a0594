"""The only reader of the environment: every setting, its default and its meaning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

LONGEST_LEASE = 600.0
"""Seconds. A lease that ends later than that from now can't be right: control_plane/fences.py."""


class ClientSettings(BaseSettings):
    """What commands need that speak to the service over HTTP: the openai client's own two variables."""

    model_config = SettingsConfigDict(env_prefix="OPENAI_", env_ignore_empty=True, extra="ignore")

    base_url: str | None = None
    """Where the service answers, as `http://127.0.0.1:8000/v1`."""

    api_key: SecretStr | None = None
    """A key that `dpo up` or `dpo keys create` made."""


class EmbeddedSettings(BaseSettings):
    """What `dpo` commands of one user share. `DPO_DATA` sets `data`."""

    model_config = SettingsConfigDict(env_prefix="DPO_", env_ignore_empty=True, extra="ignore")

    data: Path | None = None
    """Where `dpo up` keeps everything, for a command that is not given --data."""


class DatabaseSettings(BaseSettings):
    """What commands need that only talk to the database. Read as Settings is."""

    model_config = SettingsConfigDict(env_prefix="DPO_", extra="ignore")

    database_url: SecretStr
    """PostgreSQL, as `postgresql+psycopg://user:password@host/database`."""


class Settings(DatabaseSettings):
    """Read from `DPO_…` variables; `DPO_DATABASE_URL` sets `database_url`, and so on."""

    redis_url: SecretStr
    """Redis, as `redis://host:6379/0`, or a unix socket as `redis+socket:///path/to/socket`."""

    storage_url: str
    """Where files and checkpoints live: `file:///absolute/folder`."""

    runs_dir: Path | None = None
    """Run directories of this worker's attempts; default: `runs` beside the storage folder, so that
    publishing a checkpoint is a hard link instead of a copy."""

    host: str = "127.0.0.1"
    """Address the API listens on: loopback unless told otherwise."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port the API listens on."""

    cpu_slots: Annotated[int, Field(ge=0)] = os.cpu_count() or 1
    """Training processes this worker may run at once where it has no GPU; one stands for one GPU."""

    lease_seconds: Annotated[float, Field(gt=0, le=LONGEST_LEASE)] = 30.0
    """How long a claim is valid without a heartbeat; at most 600."""

    heartbeat_seconds: Annotated[float, Field(gt=0)] = 2.0
    """How often a worker renews its leases and relays metrics."""

    poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    """How often a worker looks for work without a hint; three times as seldom without a free slot."""

    stop_seconds: Annotated[float, Field(gt=0)] = 120.0
    """How long a stopping run may take for its checkpoint before it is killed."""

    hang_seconds: Annotated[float, Field(gt=0)] = 900.0
    """For how long a trainer may finish no forward pass before it counts as hung: its stacks are written down, it is
    killed, and the job goes on from its last checkpoint. While it loads, makes its first step (which may compile) or
    writes a checkpoint it may take four times as long, at least ten minutes."""

    max_attempts: Annotated[int, Field(ge=1)] = 5
    """Attempts without progress before a job fails."""

    retry_seconds: Annotated[float, Field(ge=0)] = 1.0
    """How long a job waits at most after the first attempt without progress that infrastructure ended; four times as
    long after each further one, up to five minutes. Chance makes it up to a half shorter."""

    reference_cache_bytes: Annotated[int, Field(ge=0)] = 4 * 1024**3
    """Room for measured reference log-probabilities per project (some 32 bytes a pair); what was used least recently
    goes first. 0 keeps none."""

    token_cache_bytes: Annotated[int, Field(ge=0)] = 16 * 1024**3
    """Room for rendered and tokenized data per project (some 4 bytes a token), so that a second job on the same files
    and model starts at once; what was used least recently goes first. 0 keeps none."""

    project_bytes: Annotated[int | None, Field(ge=0)] = None
    """What a project may store, in bytes of uploaded files and checkpoints' weights, unless it has a limit of its own
    (`dpo projects`); default: no limit."""

    project_waiting_jobs: Annotated[int | None, Field(ge=0)] = None
    """Jobs that a project may have waiting, unless it has a limit of its own; default: no limit."""

    project_gpus: Annotated[int | None, Field(ge=1)] = None
    """GPUs that a project may use at once, unless it has a limit of its own; default: no limit."""

    requests_per_minute: Annotated[int, Field(ge=0)] = 6000
    """How often a key may ask, unless it has a limit of its own; what is not used in a minute adds up to that many.
    0 is no limit."""

    max_file_bytes: Annotated[int, Field(ge=1)] = 8 * 1024**3
    """Largest file that may be uploaded."""

    max_json_bytes: Annotated[int, Field(ge=1)] = 1024**2
    """Largest JSON body of a request."""

    idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long a request's body may stand still before the request is given up."""

    webhook_allow_http: bool = False
    """Whether webhooks may be sent without TLS: everybody on the way reads which job ended how, and the signature."""

    webhook_allow_private: bool = False
    """Whether webhooks may be sent to loopback, private and link-local addresses: any user of the API can then make
    this server send a POST to whatever it can reach, and learn the answer's status."""

    webhook_disable_days: Annotated[float, Field(gt=0)] = 5.0
    """For how long nothing may arrive at a webhook endpoint before it is disabled."""

    @model_validator(mode="after")
    def _beats_often_enough(self) -> Self:
        if 2 * self.heartbeat_seconds > self.lease_seconds:
            raise ValueError(
                f"DPO_HEARTBEAT_SECONDS is {self.heartbeat_seconds:g} and DPO_LEASE_SECONDS {self.lease_seconds:g}: "
                "a lease must outlive two heartbeats, or every run loses it"
            )
        return self
