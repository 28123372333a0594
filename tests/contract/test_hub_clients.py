"""Unmodified huggingface_hub, its command line, transformers and peft, told nothing but HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from control_plane import models
from control_plane.database import Database
from control_plane.settings import Settings
from dpo_core.best import Best
from dpo_core.run_directory import sha256_of
from tests import published
from tests.api.conftest import Api
from tests.makers import make_adapter, make_tiny_model, write_preference_file

CLIENT = Path(__file__).with_name("hub.py")
OLDER = Path(__file__).parents[2] / "build" / "hub"
"""Environments of older clients: `make hub-clients` makes them."""


@dataclass(frozen=True)
class Job:
    model: str
    """The name that it publishes."""
    base: str
    folder: Path
    """Where the weights of its checkpoints came from."""


@pytest.fixture
def job(client: OpenAI, database: Database, settings: Settings, tiny_model: Path, tmp_path: Path) -> Job:
    """One checkpoint of a full training, at step 2 and the best so far; it goes on."""
    with database.transaction() as session:
        base = models.register_base(session, tiny_model).id
    name = submit(client, base, tmp_path)
    trained = make_tiny_model(tmp_path / "trained", seed=1)
    best = Best(step=2, metric="loss", value=0.5)
    published.publish(database, settings, published.claim(database), 2, published.files_of(trained), best=best)
    return Job(name, base, trained)


def submit(client: OpenAI, base: str, tmp_path: Path) -> str:
    with open(write_preference_file(tmp_path / "pairs.jsonl", 20), "rb") as stream:
        file = client.files.create(file=stream, purpose="fine-tune")
    made = client.fine_tuning.jobs.create(model=base, training_file=file.id, method={"type": "dpo"})
    return f"default/{base.partition('/')[2]}-{made.id[-8:]}"


@pytest.fixture
def environment(api: Api, secret: str, tmp_path: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | {
        "HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "home" / "hf"),
        "HF_ENDPOINT": f"{api.url}/hf",
        "HF_TOKEN": secret,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Runs a program in a process of its own, and returns what it printed."""

    def ran(*argv: str | Path, **changes: str) -> str:
        done = subprocess.run(
            [str(argument) for argument in argv],
            env=environment | changes,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return ran


def python(version: str) -> Path:
    if version == "newest":
        return Path(sys.executable)
    found = OLDER / version / "bin" / "python"
    if not found.exists():
        pytest.skip("older clients are not installed: make hub-clients")
    return found


@pytest.mark.parametrize("version", ["newest", "1", "0"])
def test_every_version_of_the_client(
    version: str, run: Callable[..., str], job: Job, client: OpenAI, tmp_path: Path
) -> None:
    listed: Any = client.get(f"/models/{job.model}-step-2/files", cast_to=object)
    found = json.loads(run(python(version), CLIENT, job.model, listed["commit"], tmp_path / "plain"))
    assert found["version"].split(".")[0] == {"newest": "2"}.get(version, version)
    names = sorted([*published.files_of(job.folder), "README.md", "SHA256SUMS"])
    sizes = {file["path"]: file["bytes"] for file in listed["data"]}
    assert found["sizes"] == found["snapshot"] == sizes
    assert found["plain"] == found["listed"] == found["filesystem"] == sorted(sizes) == names
    assert (found["whoami"], found["sha"], found["same"]) == ("default", listed["commit"], True)
    assert found["etag"] == sha256_of(job.folder / "model.safetensors")
    assert (found["exists"], found["paths"]) == ([True, False], ["config.json"])
    assert (found["repos"], found["tags"]) == ([True, False], ["best", "step-2"])
    assert set(found["found"]) == {f"{job.model}-step-2", f"{job.model}-best"}
    assert (found["license"], found["base_model"], found["library_name"]) == ("unknown", job.base, "transformers")
    assert found["main"].startswith("RevisionNotFoundError") and "running; use step-2" in found["main"]
    assert found["wrong revision"].startswith("RevisionNotFoundError") and "it has" in found["wrong revision"].lower()
    assert "EntryNotFoundError" in found["wrong file"]
    for wrong in ("wrong model", "wrong token"):
        assert found[wrong].startswith("RepositoryNotFoundError"), found[wrong]


def test_the_command_line(run: Callable[..., str], job: Job, environment: dict[str, str], tmp_path: Path) -> None:
    hf = Path(sys.executable).with_name("hf")
    assert "default" in run(hf, "auth", "whoami")
    run(hf, "auth", "login", "--token", environment["HF_TOKEN"], HF_TOKEN="")
    run(hf, "download", job.model, "--revision", "step-2", "--local-dir", tmp_path / "out", HF_TOKEN="")
    assert sha256_of(tmp_path / "out" / "model.safetensors") == sha256_of(job.folder / "model.safetensors")
    run(hf, "download", job.base, "config.json", "--local-dir", tmp_path / "base")
    assert json.loads((tmp_path / "base" / "config.json").read_text())["model_type"] == "llama"


LOADS = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
answers = {}
for name, revision in json.loads(sys.argv[1]):
    try:
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        answers[f"{name}@{revision}"] = [model.lm_head.weight.float().sum().item(), text]
    except (OSError, ValueError) as error:
        answers[f"{name}@{revision}"] = f"{type(error).__name__}: {error}"
sys.stdout.write("\\n" + json.dumps(answers))
"""


def test_transformers_and_the_same_string_everywhere(
    run: Callable[..., str], job: Job, client: OpenAI, tmp_path: Path
) -> None:
    step = f"{job.model}-step-2"
    wanted = [(job.model, "step-2"), (step, "main"), (job.base, "main"), (job.model, "main"), (job.model, "step-3")]
    answers = json.loads(run(sys.executable, "-c", LOADS, json.dumps(wanted)).splitlines()[-1])
    total, text = answers[f"{step}@main"]
    assert answers[f"{job.model}@step-2"] == [total, text] and text.startswith("<|im_start|>user\nhi")
    assert answers[f"{job.base}@main"][0] != total
    for missing in (f"{job.model}@main", f"{job.model}@step-3"):
        assert answers[missing].startswith("OSError"), answers[missing]
    assert client.models.retrieve(step).id == step
    following = client.fine_tuning.jobs.create(
        model=step, training_file=client.files.list().data[0].id, method={"type": "dpo"}
    )
    assert following.model == step
    client.fine_tuning.jobs.cancel(following.id)


ADAPTED = """
import sys, torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
name, revision = sys.argv[1:]
one = AutoPeftModelForCausalLM.from_pretrained(name, revision=revision)
base = one.peft_config["default"].base_model_name_or_path
two = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), f"{name}-{revision}")
three = AutoModelForCausalLM.from_pretrained(f"{name}-{revision}")
ids = AutoTokenizer.from_pretrained(f"{name}-{revision}")("hello", return_tensors="pt").input_ids
logits = [model.float()(ids).logits for model in (one, two, three)]
assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
assert not torch.equal(logits[0], AutoModelForCausalLM.from_pretrained(base).float()(ids).logits)
sys.stdout.write("\\n" + base)
"""


# peft asks transformers by a name that is going away.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_finds_an_adapters_base_here(  # noqa: PLR0917 - fixtures
    run: Callable[..., str], client: OpenAI, database: Database, settings: Settings, tiny_model: Path, tmp_path: Path
) -> None:
    with database.transaction() as session:
        base = models.register_base(session, tiny_model).id
    name = submit(client, base, tmp_path)
    held = published.claim(database)
    adapter = published.files_of(make_adapter(tiny_model, base, tmp_path / "adapter"))
    published.publish(database, settings, held, 2, adapter, kind="adapter")
    assert run(sys.executable, "-c", ADAPTED, name, "step-2").splitlines()[-1] == base
