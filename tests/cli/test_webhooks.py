"""`dpo webhooks`, against a running API."""

from __future__ import annotations

from openai import OpenAI
from openai.types import FileObject

from tests.cli.conftest import Dpo

URL = "https://hooks.example/x"


def test_from_create_to_delete(dpo: Dpo, client: OpenAI, base: str, pairs: object) -> None:
    made = dpo("webhooks", "create", URL, "--name", "ours", "--event", "fine_tuning.job.cancelled")
    assert made.returncode == 0, made.stderr
    endpoint_id, secret = made.stdout.split()
    assert endpoint_id.startswith("webhook-") and secret.startswith("whsec_")
    listed = dpo("webhooks", "list").stdout
    assert all(word in listed for word in (endpoint_id, "ours", URL, "fine_tuning.job.cancelled", "enabled"))
    assert secret not in listed

    file: FileObject = client.files.create(file=("a.jsonl", b"{}\n"), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=base, training_file=file.id)
    client.fine_tuning.jobs.cancel(job.id)
    header, line = dpo("webhooks", "log", endpoint_id).stdout.splitlines()
    assert header.split()[0] == "delivery"
    assert all(word in line for word in (job.id, "fine_tuning.job.cancelled", "waiting"))
    assert dpo("webhooks", "redeliver", endpoint_id, line.split()[0]).returncode == 0
    assert dpo("webhooks", "enable", endpoint_id).stdout == f"enabled {endpoint_id}\n"
    assert dpo("webhooks", "delete", endpoint_id).stdout == f"deleted {endpoint_id}\n"
    gone = dpo("webhooks", "log", endpoint_id)
    assert gone.returncode == 1 and "no webhook endpoint" in gone.stderr


def test_a_url_that_is_refused(dpo: Dpo) -> None:
    refused = dpo("webhooks", "create", "http://hooks.example/x")
    assert refused.returncode == 1
    assert "DPO_WEBHOOK_ALLOW_HTTP" in refused.stderr
