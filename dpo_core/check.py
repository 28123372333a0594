"""Answers a question about data: `python -m dpo_core.check RUN_DIR`.

Reads `spec.json` (a CheckSpec), writes `answer.json` and `status.json`. Needs no GPU and imports no torch.
"""

from __future__ import annotations

import sys

from dpo_core import program
from dpo_core.data.file_check import check_file
from dpo_core.prepare import estimate
from dpo_core.questions import CheckSpec, FileQuestion, Question
from dpo_core.run_directory import RunDirectory, Status, write_whole
from dpo_core.spec import StrictModel


def answer(question: Question, directory: RunDirectory) -> StrictModel:
    """What the question's class says.

    Raises:
        RunError: kind `user`; the question can't be answered, and why.
        OSError: a file can't be read.
    """
    if isinstance(question, FileQuestion):
        return check_file(question.file)
    return estimate(question.run, directory.tokens)


def check(directory: RunDirectory) -> Status:
    spec = CheckSpec.model_validate_json(directory.spec_file.read_bytes())
    write_whole(directory.answer_file, answer(spec.question, directory).model_dump_json())
    return Status(state="succeeded")


if __name__ == "__main__":
    sys.exit(program.main("check", check, sys.argv[1:]))
