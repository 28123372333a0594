"""Checks and measures a run's data, and settles its spec: `python -m dpo_core.prepare RUN_DIR`.

Reads `spec.json`, writes `prepared.json`, events and `status.json` (running, then succeeded, failed, or
stopped on SIGTERM). Needs no GPU and imports no torch.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dpo_core import program
from dpo_core.data.parallel import MEMORY_BYTES
from dpo_core.data.parts import Part
from dpo_core.data.run_data import Source, divide, open_or_load
from dpo_core.data.token_table import Selection, TokenTable
from dpo_core.device_memory import host_memory, memory_of_a_rank
from dpo_core.disk import disk
from dpo_core.errors import user_error
from dpo_core.memory import DeviceFacts
from dpo_core.model_folder import ModelFacts, check_lora_targets, model_facts
from dpo_core.plan import Facts, Resolution, choose_max_length, resolve, total_steps
from dpo_core.prepare_events import announce
from dpo_core.prepare_report import Lengths, Prepared, Report
from dpo_core.prepare_tables import report_of
from dpo_core.process import limit_memory
from dpo_core.reference_group import reference_group
from dpo_core.run_directory import RunDirectory, Status, write_whole
from dpo_core.spec import RunSpec


def prepare(run_spec: RunSpec, tokens: Path) -> Prepared:
    """`estimate`, and the group of the run's reference. Raises what that raises."""
    prepared = estimate(run_spec, tokens)
    group = reference_group(run_spec.model_copy(update={"training": prepared.training}))
    return prepared.model_copy(update={"reference_group": group})


def estimate(run_spec: RunSpec, tokens: Path) -> Prepared:
    """Reads every row and resolves the spec, all but the reference's group: the model's weights stay unread.

    The token tables lie in `tokens` then, where the trainer finds them. One that is there already is taken as it is.

    Raises:
        RunError: kind `user`; a bad row, a damaged model folder, or a spec that can't be.
        OSError: a file can't be read.
    """
    training = run_spec.training
    model = model_facts(run_spec.model)
    if training.lora is not None:
        check_lora_targets(run_spec.model, training.lora)
    tables = _tables(run_spec, model.context_length, tokens)
    table, validation = tables["training"], tables.get("validation")
    lengths, weights = Lengths.of(table.facts.lengths), Source.training(run_spec).weights
    seen = sum(weight * file.pairs for weight, file in zip(weights, table.facts.files, strict=True))
    facts = Facts(
        model=model,
        items=len(table),
        weight=seen / max(1, len(table)),
        lengths=lengths,
        device=DeviceFacts(
            run_spec.device, run_spec.ranks, memory_of_a_rank(run_spec.device, run_spec.ranks), host_memory()
        ),
        has_validation_file=validation is not None,
        reference=None if run_spec.reference is None else model_facts(run_spec.reference),
    )
    resolution = resolve(training, facts)
    train, held_out = divide(run_spec.model_copy(update={"training": resolution.training}), table, validation)
    _check_vocabulary(tables.values(), model.vocabulary_size)
    # Rows of one prompt stay together, so a few more may be held out than the plan reckoned with.
    report = report_of(tables, run_spec, resolution.warnings, sides=(len(train), len(held_out)))
    return _prepared(resolution, report, train, model)


def _tables(run_spec: RunSpec, context: int | None, tokens: Path) -> dict[Part, TokenTable]:
    """Of all parts that the run has; validation rows are cut like training rows."""
    training = run_spec.training

    def limit(lengths: Counter[int]) -> int:
        return choose_max_length(training, Lengths.of(lengths), context)[0]

    table = open_or_load(run_spec, Source.training(run_spec), limit, tokens)
    tables: dict[Part, TokenTable] = {"training": table}
    if run_spec.validation_file is not None:
        source = Source.validation(run_spec.validation_file)
        tables["validation"] = open_or_load(run_spec, source, table.facts.max_length, tokens)
    return tables


def _prepared(resolution: Resolution, report: Report, train: Selection, model: ModelFacts) -> Prepared:
    training = resolution.training
    batch_size, epochs = training.batch_size, training.epochs
    if batch_size == "auto" or epochs == "auto":
        raise ValueError("`resolve` left an auto")
    steps = total_steps(len(train), batch_size, epochs, training.max_steps)
    passes = steps / total_steps(len(train), batch_size, 1, None)
    return Prepared(
        training=training,
        values=resolution.values,
        report=report,
        memory=resolution.memory,
        disk=disk(training, model, steps),
        reference_group=None,
        total_steps=steps,
        trained_tokens_estimate=round(passes * train.token_count()),
    )


def _check_vocabulary(tables: Iterable[TokenTable], vocabulary_size: int) -> None:
    largest = max(table.facts.largest_token for table in tables)
    if largest >= vocabulary_size:
        message = (
            f"The tokenizer makes token id {largest}, but the model knows only {vocabulary_size} tokens. "
            "Use the tokenizer that belongs to the model, or resize the model's embeddings."
        )
        raise user_error("vocabulary_mismatch", message, param="model")


def run(path: Path) -> int:
    """Prepares the run in folder `path`; the exit code is 0 unless it failed."""
    return program.run(path, _prepare)


def _prepare(directory: RunDirectory) -> Status:
    found = len(directory.token_tables())
    prepared = prepare(directory.spec(), directory.tokens)
    announce(directory, prepared, tables_found=found)
    write_whole(directory.prepared_file, prepared.model_dump_json(indent=2))
    return Status(state="succeeded", total_steps=prepared.total_steps)


def main(arguments: list[str]) -> int:
    return program.main("prepare", _prepare, arguments)


if __name__ == "__main__":
    limit_memory(MEMORY_BYTES)
    sys.exit(main(sys.argv[1:]))
