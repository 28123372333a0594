"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PROJECT = "default"
"""The project of the embedded service, and of commands that name none."""

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="The data folder of a running `dpo up`; without it DPO_DATABASE_URL, or the default."),
]
