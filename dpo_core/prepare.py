"""Checks and measures a run's data, and settles its spec: `python -m dpo_core.prepare RUN_DIR`.

Reads `spec.json`, writes `prepared.json`, events and `status.json` (running, then succeeded, failed, or
stopped on SIGTERM). Needs no GPU and imports no torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dpo_core import program
from dpo_core.data.dataset import Dataset, FileName, divide, load_tolerable
from dpo_core.data.problems import LINES_KEPT, TITLES
from dpo_core.data.records import TokenItem
from dpo_core.data.render import Renderer
from dpo_core.device_memory import host_memory, memory_of_a_rank
from dpo_core.errors import user_error
from dpo_core.memory import DeviceFacts
from dpo_core.model_folder import check_lora_targets, model_facts
from dpo_core.plan import Facts, Resolution, choose_max_length, resolve, total_steps
from dpo_core.prepare_events import announce
from dpo_core.prepare_report import Lengths, Prepared, Report, ReportFinding, ReportProblem
from dpo_core.reference_group import reference_group
from dpo_core.run_directory import RunDirectory, Status, write_whole
from dpo_core.spec import RunSpec


def prepare(run_spec: RunSpec) -> Prepared:
    """Reads every row and resolves the spec. The trainer, given the result, sees the same rows and steps.

    Raises:
        RunError: kind `user`; a bad row, a damaged model folder, or a spec that can't be.
        OSError: a file can't be read.
    """
    training = run_spec.training
    model = model_facts(run_spec.model)
    if training.lora is not None:
        check_lora_targets(run_spec.model, training.lora)
    renderer = Renderer.for_run(run_spec.model, training)
    data = load_tolerable(run_spec.training_file, "training", training, renderer, None)
    lengths = Lengths.of([item.length for item in data.items])
    max_length, _ = choose_max_length(training, lengths, model.context_length)
    if lengths.longest > max_length:
        data = load_tolerable(run_spec.training_file, "training", training, renderer, max_length)
    validation = None
    if run_spec.validation_file is not None:
        validation = load_tolerable(run_spec.validation_file, "validation", training, renderer, max_length)
    facts = Facts(
        model=model,
        items=len(data.items),
        lengths=lengths,
        device=DeviceFacts(
            run_spec.device, run_spec.ranks, memory_of_a_rank(run_spec.device, run_spec.ranks), host_memory()
        ),
        has_validation_file=validation is not None,
    )
    resolution = resolve(training, facts)
    train, held_out = divide(data, validation, resolution.training)
    _check_vocabulary([*train, *held_out], model.vocabulary_size)
    # Rows of one prompt stay together, so a few more may be held out than the plan reckoned with.
    report = _report(data, validation, lengths, resolution.warnings, sides=(len(train), len(held_out)))
    group = reference_group(run_spec.model_copy(update={"training": resolution.training}))
    return _prepared(resolution, report, train, group)


def _report(
    data: Dataset, validation: Dataset | None, lengths: Lengths, warnings: list[str], *, sides: tuple[int, int]
) -> Report:
    problems = _problems("training", data)
    if validation is not None:
        problems += _problems("validation", validation)
    return Report(
        rows=data.rows,
        pairs=len(data.items),
        bad=data.problems.count,
        problems=problems,
        train_items=sides[0],
        validation_items=sides[1],
        dropped_lines=data.dropped_lines[:LINES_KEPT],
        dropped=len(data.dropped_lines),
        truncated=len(data.truncated_lines),
        lengths=lengths,
        findings=[
            ReportFinding(code=it.code, message=it.message, count=it.count, lines=it.lines) for it in data.findings
        ],
        warnings=warnings,
    )


def _problems(file: FileName, data: Dataset) -> list[ReportProblem]:
    return [
        ReportProblem(
            file=file, code=it.code, title=TITLES[it.code], message=it.message, count=it.count, lines=it.lines
        )
        for it in data.problems.findings()
    ]


def _prepared(resolution: Resolution, report: Report, train: list[TokenItem], group: str | None) -> Prepared:
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
        reference_group=group,
        total_steps=steps,
        trained_tokens_estimate=round(passes * sum(len(tokens) for item in train for tokens in item.sequences)),
    )


def _check_vocabulary(items: list[TokenItem], vocabulary_size: int) -> None:
    largest = max(max(tokens) for item in items for tokens in item.sequences)
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
    prepared = prepare(directory.spec())
    announce(directory, prepared)
    write_whole(directory.prepared_file, prepared.model_dump_json(indent=2))
    return Status(state="succeeded", total_steps=prepared.total_steps)


def main(arguments: list[str]) -> int:
    return program.main("prepare", _prepare, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
