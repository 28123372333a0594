"""`dpo submit`, `dpo watch` and `dpo download` against the real API; tests/cli/work.py plays the worker."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import uvicorn
from openai import OpenAI
from rich.console import Console

import cli.client
from api.main import create_app
from cli.data_folder import DataFolder
from cli.download import how_to_load, verify
from cli.errors import CommandFailed
from cli.job_view import describe, job_view
from cli.submit import Flags, request_body
from cli.watch import follow, likelihood, next_commands, silence
from cli.words import duration, moment
from control_plane import leases
from control_plane.database import Database
from control_plane.errors import InvalidRequest
from control_plane.settings import Settings
from dpo_core.run_directory import CHECKSUMS
from tests.cli.conftest import Dpo
from tests.cli.running import argv, clean, until
from tests.cli.work import CONTENT, STEPS, claim, published, refused, trained, validated, whole_job

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*/job.json"))


# -- submit ------------------------------------------------------------------------------------------


def test_options_win_over_the_spec_file_wherever_that_says_it(
    client: OpenAI, base: str, pairs: Path, dpo: Dpo, tmp_path: Path
) -> None:
    spec = tmp_path / "job.json"
    settings = {"beta": 0.5, "n_epochs": 3, "learning_rate_multiplier": 2}
    method = {"type": "dpo", "dpo": {"hyperparameters": settings}}
    spec.write_text(json.dumps({"method": method, "training": {"max_length": 64, "batch_size": 8}, "seed": 7}))
    options = (
        "--loss",
        "ipo",
        "--beta",
        0.2,
        "--learning-rate",
        1e-4,
        "--batch-size",
        16,
        "--gpus",
        2,
        "--suffix",
        "mine",
        "--lora",
    )
    done = dpo("submit", pairs, "--validation", pairs, "--model", base, "--spec", spec, *options)
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.strip()
    assert done.stderr.endswith(f"{job_id}\n") and " watch ftjob-" in done.stderr

    job = client.fine_tuning.jobs.retrieve(job_id)
    asked = job.run["training"]  # type: ignore[attr-defined]
    chosen = {
        name: asked[name] for name in ("method", "loss", "beta", "epochs", "learning_rate", "batch_size", "max_length")
    }
    assert chosen == {
        "method": "dpo",
        "loss": "ipo",
        "beta": 0.2,
        "epochs": 3,
        "learning_rate": 1e-4,
        "batch_size": 16,
        "max_length": 64,
    }
    assert (asked["lora"]["rank"], job.seed, job.run["gpus"]) == (16, 7, 2)  # type: ignore[attr-defined]
    assert client.files.content(job.training_file).read() == pairs.read_bytes()
    assert client.files.retrieve(job.validation_file or "").filename == "pairs.jsonl"


def test_a_job_is_a_dpo_job_unless_told_otherwise() -> None:
    def method(spec: dict[str, object], flag: str | None = None) -> object:
        body = request_body(spec, Flags("base/m", method=flag))  # type: ignore[arg-type]
        return body.get("method", {}).get("type") or body["training"]["method"]

    supervised = {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}}
    assert method({}) == "dpo"
    assert method(supervised) == "supervised"
    assert method({"training": {"method": "supervised"}}) == "supervised"
    assert method({"training": {"method": "supervised"}}, "dpo") == "dpo"
    assert method(supervised, "dpo") == "dpo"
    assert request_body(supervised, Flags("base/m", method="supervised"))["method"] == supervised["method"]


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.parent.name for path in EXAMPLES])
def test_the_example_specs_fit(path: Path) -> None:
    spec = json.loads(path.read_text())
    assert request_body(spec, Flags("base/m")) == {**spec, "model": "base/m"}
    assert request_body(spec, Flags("base/m", beta=0.3))["training"] == {**spec["training"], "beta": 0.3}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"trainng": {}}, 'Did you mean "training"'),
        ({"training": {"beta": -1}}, "training.beta"),
        ({"method": {"type": "dpo", "supervised": {}}}, "keep one of them"),
    ],
)
def test_a_wrong_spec_is_refused_before_anything_is_sent(spec: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        request_body(spec, Flags("base/m"))


def test_a_loss_that_does_not_exist_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(InvalidRequest, match="Did you mean `sigmoid`"):
        request_body({}, Flags("base/m", loss="sigmod"))
    assert request_body({"training": {"loss": "hinge"}}, Flags("base/m", loss="ipo"))["training"] == {"loss": "ipo"}


def test_what_is_refused_is_one_line_and_leaves_no_file(
    client: OpenAI, base: str, pairs: Path, dpo: Dpo, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    reference = tmp_path / "reference.json"
    reference.write_text('{"training": {"reference": "base/none"}}')
    for arguments, said in [
        ((tmp_path / "none.jsonl", "--model", base), "there is no file"),
        ((tmp_path / "empty.jsonl", "--model", base), "is empty; it takes one row a line"),
        ((pairs, "--model", base, "--spec", tmp_path / "none.json"), "No such file"),
        ((pairs, "--model", base, "--spec", tmp_path / "broken.json"), "is not JSON: "),
        ((pairs, "--model", base, "--spec", tmp_path / "list.json"), "holds no JSON object"),
        ((pairs, "--model", "base/none"), "dpo models add"),
        ((pairs, "--model", base, "--spec", reference), "There is no model 'base/none'"),
    ]:
        done = dpo("submit", *arguments)
        last = done.stderr.splitlines()[-1]
        assert (done.returncode, done.stdout) == (1, "")
        assert last.startswith("dpo: ") and said in last, done.stderr
    assert list(client.files.list()) == []


# -- where the service is ----------------------------------------------------------------------------


def test_what_is_missing_or_wrong_about_the_service_is_said(dpo: Dpo) -> None:
    for changed, said in [
        ({"OPENAI_BASE_URL": ""}, "OPENAI_BASE_URL is not set in the environment; "),
        ({"OPENAI_API_KEY": ""}, "OPENAI_API_KEY is not set in the environment; "),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, "nothing answers at http://127.0.0.1:9/v1 ("),
        ({"OPENAI_API_KEY": "sk-dpo-wrong"}, "refuses OPENAI_API_KEY: This API key is not known here."),
        ({}, "There is no job 'ftjob-none' in this project."),
    ]:
        done = dpo("watch", "ftjob-none", **changed)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith("dpo: ") and said in done.stderr
    assert "it is empty" in dpo("watch", "").stderr


def test_without_exports_the_running_embedded_service_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DPO_DATA", str(tmp_path))
    with pytest.raises(CommandFailed, match=f"no service runs in {tmp_path}, "), cli.client.connected():
        pass
    folder = DataFolder(tmp_path)
    folder.keep_key("sk-dpo-of-the-folder")
    folder.announce("http://127.0.0.1:8000/v1")
    with cli.client.connected() as client:
        assert (str(client.base_url), client.api_key) == ("http://127.0.0.1:8000/v1/", "sk-dpo-of-the-folder")

    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    with pytest.raises(CommandFailed) as refused, cli.client.connected():
        pass
    assert str(refused.value).endswith(
        f"for the service that runs in {tmp_path}: export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 "
        f'OPENAI_API_KEY="$(cat {tmp_path}/api_key)"'
    )
    monkeypatch.delenv("OPENAI_API_KEY")
    folder.withdraw()
    with pytest.raises(CommandFailed, match="start the service with"), cli.client.connected():
        pass


# -- watch -------------------------------------------------------------------------------------------


@contextmanager
def watching(job_id: str, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """`dpo watch`, and what it has said so far."""
    said: list[str] = []
    process = subprocess.Popen(
        argv(("watch", job_id)),
        env=clean({**environment, "PYTHONUNBUFFERED": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: said.extend(process.stdout or ()))
    reader.start()
    try:
        yield process, lambda: "".join(said)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def test_watching_a_job_from_beginning_to_end(
    job_id: str, database: Database, settings: Settings, environment: dict[str, str]
) -> None:
    with watching(job_id, environment) as (process, said):
        until(lambda: "waiting until a worker has read and checked the data\n" in said(), "it waits for validation")
        validated(database)
        until(lambda: "waiting for a worker with 1 free slot\n" in said(), "it waits in the queue")
        held = claim(database)
        until(lambda: "waiting for the first step" in said(), "it waits for the trainer")
        trained(database, held, range(10))
        until(lambda: f"step 10 of {STEPS}  loss 0.550  margin 0.900  accuracy 0.750" in said(), "it shows numbers")
        trained(database, held, range(10, STEPS))
        published(database, settings, held)
        assert process.wait(60) == 0
    lines = said().splitlines()
    assert any(re.fullmatch(r"\d\d:\d\d:\d\d warning: \[b\] is odd", line) for line in lines)
    (model,) = [line.split()[2].rstrip(",") for line in lines if line.startswith(f"{job_id} succeeded: ")]
    assert "  training  loss 0.0500   margin 1.9000   accuracy 0.7500" in lines
    assert "  held out  loss 1.0000 → 0.5000   margin 0.0000 → 1.0000   accuracy 0.7500 → 0.7500" in lines
    assert "            log-probability of the chosen answers, a token: 0.00 → -1.00" in lines
    name = model.partition("/")[2]
    assert lines[-3].startswith("  all steps ") and lines[-3].endswith(f" files get file-{job_id} > {name}.csv")
    assert lines[-1].endswith(f" download {model} {name}")
    assert len(lines) == len(set(lines) - {""}) + lines.count(""), "no line comes twice"


def test_the_outcome_says_where_the_chosen_answers_became_less_likely() -> None:
    def said(before: float, after: float) -> list[str]:
        return likelihood({"logps/chosen_per_token": before}, {"logps/chosen_per_token": after})

    assert said(-2, -1.5) == ["            log-probability of the chosen answers, a token: -2.00 → -1.50"]
    assert "they became less likely; docs/losses.md" in said(-1.5, -2)[1]
    assert len(said(-1.501, -1.502)) == 1
    assert likelihood({"loss": 1}, {"loss": 0}) == []


@pytest.mark.parametrize(
    ("state", "left", "said"),
    [
        ("queued", None, None),
        ("running", 15, None),
        ("running", 14, "no news from its worker; if that lasts, the next free one will go on"),
        ("pausing", 14, "no news from its worker; if that lasts, the job will be paused"),
        ("running", 0, "its worker is not heard of: the next free one will go on"),
    ],
)
def test_a_lease_that_is_not_renewed_is_silence(state: str, left: int | None, said: str | None) -> None:
    assert silence(state, left, 30) == said


def test_a_worker_that_is_not_heard_of_is_missed(job_id: str, client: OpenAI, database: Database) -> None:
    validated(database)
    held = claim(database, lease_seconds=0.001)
    screen = io.StringIO()
    asked, quiet = (client, job_id, Console(file=screen)), {"events": False}
    watcher = threading.Thread(target=follow, args=asked, kwargs=quiet, daemon=True)
    watcher.start()
    until(lambda: screen.getvalue() != "", "it is said")
    with database.transaction() as session:
        leases.renew(session, replace(held, lease_seconds=600))
    trained(database, held, range(10))
    until(lambda: "step 10 of" in screen.getvalue(), "it trains")
    client.fine_tuning.jobs.cancel(job_id)
    watcher.join()
    first, second, *_ = screen.getvalue().splitlines()
    assert (first, second) == (
        "its worker is not heard of: the next free one will go on",
        "its worker, or another one, is heard of",
    )


def test_a_failed_job_is_an_exit_code(job_id: str, database: Database, dpo: Dpo) -> None:
    refused(database, "line 3: write a prompt")
    done = dpo("watch", job_id)
    assert (done.returncode, done.stderr) == (1, f"dpo: {job_id} failed: line 3: write a prompt\n")
    assert "line 3" not in done.stdout


def test_a_cancelled_job_is_an_exit_code(client: OpenAI, job_id: str, dpo: Dpo) -> None:
    client.fine_tuning.jobs.cancel(job_id)
    done = dpo("watch", job_id)
    assert done.returncode == 1 and done.stderr.startswith(f"dpo: {job_id} was cancelled")


def test_ctrl_c_leaves_the_job_running(client: OpenAI, job_id: str, environment: dict[str, str]) -> None:
    with watching(job_id, environment) as (process, said):
        until(lambda: "waiting" in said(), "it watches")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert f"{job_id} goes on without being watched" in said()
    assert "Traceback" not in said()
    assert client.fine_tuning.jobs.retrieve(job_id).status == "validating_files"


@contextmanager
def api_on(port: int, settings: Settings) -> Iterator[int]:
    """The API on a port of its own, 0 for any, that can go and come again; yields the port."""
    config = uvicorn.Config(create_app(settings), host="127.0.0.1", port=port, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "the API listens")
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def test_an_api_that_goes_is_waited_for(job_id: str, database: Database, settings: Settings, secret: str) -> None:
    with ExitStack() as until_exit:
        with api_on(0, settings) as port:
            where = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": secret}
            process, said = until_exit.enter_context(watching(job_id, where))
            until(lambda: "waiting until" in said(), "it watches")
        until(lambda: "the service doesn't answer (" in said(), "it notices")
        with api_on(port, settings):
            until(lambda: "the service answers again" in said(), "it notices again")
            whole_job(database, settings)
            assert process.wait(60) == 0
    assert said().count("the service doesn't answer (") == 1


def test_a_terminal_gets_a_bar(job_id: str, client: OpenAI, database: Database, settings: Settings) -> None:
    whole_job(database, settings)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, force_interactive=True, width=120, color_system="standard")
    assert follow(client, job_id, console).status == "succeeded"
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert f"{STEPS}/{STEPS} loss 0.050  margin 1.900  accuracy 0.750" in text
    assert "\x1b[33mwarning:\x1b[0m [b] is odd" in screen.getvalue()
    quiet = io.StringIO()
    follow(client, job_id, Console(file=quiet), events=False)
    assert quiet.getvalue() == f"step {STEPS} of {STEPS}  loss 0.050  margin 1.900  accuracy 0.750\n"


def test_a_bar_says_what_is_waited_for_and_no_time_to_go_after_the_last_step(
    job_id: str, client: OpenAI, database: Database
) -> None:
    validated(database)
    held = claim(database)
    trained(database, held, range(STEPS))
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.status == "running"
    job.estimated_finish = 0
    screen = io.StringIO()
    with job_view(Console(file=screen, force_terminal=True, force_interactive=True, width=120)) as view:
        view.waiting("waiting for a worker")
        view.training(job, {"loss": 0.5})
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert text.strip().startswith("asking the service ") and "0/?" not in text
    assert f"{STEPS}/{STEPS} loss 0.500" in text and "ETA" not in text


def test_a_moment_is_by_this_machines_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as there:
        there.setenv("TZ", "UTC-5:30")
        time.tzset()
        noon = datetime(2026, 11, 27, 12, tzinfo=UTC)
        assert moment(noon) == moment(noon.timestamp()) == "2026-11-27T17:30:00+0530"
        assert moment(None) == "-"
    time.tzset()


def test_a_measurement_in_words() -> None:
    values = {"loss": 0.5, "rewards/margins": -0.0001, "grad_norm": 3.0}
    assert describe(values, None) == "loss 0.500  margin 0.000"
    assert describe(values, 0).endswith("ETA 0 s")
    assert [duration(seconds) for seconds in (-3, 42.4, 200, 18720)] == ["0 s", "42 s", "3 min 20 s", "5 h 12 min"]


def test_the_next_command_names_the_best_model_where_that_is_an_earlier_one() -> None:
    (only,) = next_commands("default/tiny", None)
    assert only.startswith("next: ") and only.endswith(" download default/tiny tiny")
    best, last = next_commands("default/tiny", "default/tiny-best")
    assert best.startswith("next: ") and best.endswith(" download default/tiny-best tiny-best")
    assert last.startswith("or the last step's: ") and last.endswith(" download default/tiny tiny")


# -- download ----------------------------------------------------------------------------------------


@pytest.fixture
def model(client: OpenAI, job_id: str, database: Database, settings: Settings) -> str:
    whole_job(database, settings)
    return client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model or ""


def test_a_model_comes_whole_into_a_new_or_empty_folder(model: str, dpo: Dpo, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "folder"):
        done = dpo("download", model, folder)
        assert done.returncode == 0, done.stderr
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != CHECKSUMS} == CONTENT
        assert f"AutoModelForCausalLM.from_pretrained('{folder}')" in done.stdout
        assert list(folder.parent.glob(".*")) == []
    check = subprocess.run(["sha256sum", "--check", CHECKSUMS], cwd=folder, capture_output=True, check=False)
    assert check.returncode == 0, check.stdout

    again = dpo("download", model, folder)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"dpo: {folder} exists and is not an empty folder; name another one\n"


def test_damaged_bytes_leave_no_folder(model: str, settings: Settings, dpo: Dpo, tmp_path: Path) -> None:
    (stored,) = Path(settings.storage_url.removeprefix("file://")).glob("checkpoints/*/*/*/model/model.safetensors")
    stored.write_bytes(b"x" * stored.stat().st_size)
    done = dpo("download", model, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "dpo: model.safetensors is not what was trained: its SHA-256 differs; download it again"
    )
    assert not list(tmp_path.glob("*out*"))


def test_models_without_an_archive_are_refused(base: str, dpo: Dpo, tmp_path: Path) -> None:
    for model_id, said in ((base, "base model"), ("default/none", "There is no model")):
        done = dpo("download", model_id, tmp_path / "out")
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
        assert not list(tmp_path.glob("*out*"))


def test_files_that_lack_or_are_unknown_are_found(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=f"no {CHECKSUMS}"):
        verify(tmp_path)
    (tmp_path / CHECKSUMS).write_text(f"{'0' * 64}  a.json\n")
    with pytest.raises(CommandFailed, match=r"lacks a\.json"):
        verify(tmp_path)
    (tmp_path / CHECKSUMS).write_text("")
    (tmp_path / "b.json").touch()
    with pytest.raises(CommandFailed, match=r"unknown file b\.json"):
        verify(tmp_path)


def test_how_to_load_can_be_pasted(tmp_path: Path) -> None:
    for base in (None, "base/small"):
        lines = how_to_load(tmp_path / "it's", base)
        compile("\n".join(line.removeprefix("  ") for line in lines[1:]), "pasted", "exec")
        assert ("peft" in "".join(lines)) == (base is not None)
