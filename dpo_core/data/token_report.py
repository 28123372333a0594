"""What a model's tokenizer and chat template make of a file: lengths, what would be cut, what is odd."""

from __future__ import annotations

from collections import Counter
from datetime import date
from functools import partial
from pathlib import Path

from dpo_core.data.facts import FileFacts
from dpo_core.data.file_check import method_of
from dpo_core.data.file_report import TokenReport, findings_of, problems_of
from dpo_core.data.findings import FINDINGS
from dpo_core.data.formats import raw_rows
from dpo_core.data.options import ReadOptions
from dpo_core.data.parallel import chunks, map_in_order
from dpo_core.data.problems import Tally
from dpo_core.data.render import Renderer
from dpo_core.data.rendering import Chunk, Rendering
from dpo_core.model_folder import model_facts
from dpo_core.plan import choose_max_length
from dpo_core.prepare_report import Lengths
from dpo_core.spec import ModelSource, TrainingSpec

RENDERING = ("not_rendered", "equal_tokens")
"""Problems that a row has with a model only; the others are in the file's own report."""


def check_tokens(
    path: Path,
    model: ModelSource,
    today: date | None = None,
    processes: int | None = None,
    columns: dict[str, str] | None = None,
) -> TokenReport:
    """Every good row of `path`, uncut, by the model's own chat template; in as many `processes` as there are cores.

    `today` is the date that the template may write, `columns` are the file's own names for fields.

    Raises:
        RunError: kind `user`; the model's folder is damaged, or the rows need a chat template that it doesn't have.
        OSError: the file can't be read.
    """
    training = TrainingSpec(method=method_of(path, columns), columns=columns or {})
    rendering = Rendering(partial(Renderer.for_run, model, training, today), ReadOptions.of(training), None)
    facts, counts = FileFacts(), Counter[int]()
    for portion in map_in_order(rendering, (Chunk(0, rows) for rows in chunks(raw_rows(path))), processes):
        facts.merge(portion.facts)
        counts.update(portion.lengths)
    lengths = Lengths.of(counts)
    max_length, reason = choose_max_length(training, lengths, model_facts(model).context_length)
    problems, findings = Tally(), Tally()
    problems.merge(found for found in facts.problems.findings() if found.code in RENDERING)
    findings.merge(found for found in facts.findings.findings() if found.code in FINDINGS)
    return TokenReport(
        method=training.method,
        rows=counts.total(),
        lengths=lengths,
        max_length=max_length,
        max_length_reason=reason,
        longer=sum(count for length, count in counts.items() if length > max_length),
        problems=problems_of(problems),
        findings=findings_of(findings),
    )
