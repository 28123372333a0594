"""Answers a question about data: `python -m dpo_core.check RUN_DIR`.

Reads `spec.json` (a CheckSpec), writes `answer.json` and `status.json`. Needs no GPU and imports no torch.
"""

from __future__ import annotations

import sys

from dpo_core import program
from dpo_core.data.file_check import check_file, method_of
from dpo_core.data.options import ReadOptions
from dpo_core.data.parallel import MEMORY_BYTES
from dpo_core.data.preview import preview
from dpo_core.data.render import Renderer
from dpo_core.data.token_report import check_tokens
from dpo_core.prepare import estimate
from dpo_core.process import limit_memory
from dpo_core.questions import CheckSpec, FileQuestion, PreviewQuestion, Question, TokenQuestion
from dpo_core.run_directory import RunDirectory, Status, write_whole
from dpo_core.spec import StrictModel, TrainingSpec


def answer(question: Question, directory: RunDirectory) -> StrictModel:
    """What the question's class says.

    Raises:
        RunError: kind `user`; the question can't be answered, and why.
        OSError: a file can't be read.
    """
    if isinstance(question, FileQuestion):
        return check_file(question.file, columns=question.columns)
    if isinstance(question, TokenQuestion):
        return check_tokens(question.file, question.model, question.today, columns=question.columns)
    if isinstance(question, PreviewQuestion):
        return _preview(question)
    return estimate(question.run, directory.tokens)


def _preview(question: PreviewQuestion) -> StrictModel:
    training = TrainingSpec(method=method_of(question.file, question.columns), columns=question.columns)
    return preview(
        question.file,
        Renderer.for_run(question.model, training, question.today),
        ReadOptions.of(training),
        rows=question.limit,
        lines=question.lines,
        max_length=question.max_length,
    )


def check(directory: RunDirectory) -> Status:
    spec = CheckSpec.model_validate_json(directory.spec_file.read_bytes())
    write_whole(directory.answer_file, answer(spec.question, directory).model_dump_json())
    return Status(state="succeeded")


if __name__ == "__main__":
    limit_memory(MEMORY_BYTES)
    sys.exit(program.main("check", check, sys.argv[1:]))
