"""TRL's own preparation of a preference file, by TRL's venv: `python trl_prepare.py SETTINGS.json`.

Imports nothing of this project. What is timed is what a training script of TRL's does before its first step:
`load_dataset`, then `DPOTrainer`'s preparation with a default `DPOConfig`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets import load_dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer


def main(settings: dict[str, Any]) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    config = DPOConfig(
        output_dir=settings["output"], use_cpu=True, report_to="none", dataset_num_proc=settings["processes"]
    )
    started = time.monotonic()
    rows = load_dataset("json", data_files=settings["file"], split="train", cache_dir=settings["output"])
    # Of the trainer it needs the tokenizer alone.
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    prepared = DPOTrainer._prepare_dataset(trainer, rows, tokenizer, config, "train")
    seconds = time.monotonic() - started
    return {"seconds": seconds, "rows": len(prepared), "first": {name: prepared[0][name] for name in IDS}}


IDS = ("prompt_ids", "chosen_ids", "rejected_ids")

if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_bytes())
    Path(given["result"]).write_text(json.dumps(main(given)))
