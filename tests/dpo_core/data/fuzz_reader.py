"""Reads mutated data files under a limit on memory: `python -m tests.dpo_core.data.fuzz_reader FOLDER SEED EXAMPLES`.

FOLDER holds whole files of every kind. Hypothesis picks one and damages it; whatever comes out, the reader answers with
records and problems. Anything else ends this program with an error. The limit holds for the reader of Parquet, too.
"""

from __future__ import annotations

import resource
import sys
from itertools import pairwise
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from dpo_core.data.formats import read_rows
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import FileProblem, RowProblem

MEMORY_BYTES = 2**30
"""Beside what the program itself takes."""

SIGNS = [
    *(b"", b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b"\\", b"[", b"]", b"{", b"}", b",", b":", b"\n", b"\r", b"NaN"),
    *(b"\\ud83d", b"-1e999", b"null", b"[" * 5000, b'{"a":' * 5000, b" " * 70_000, b"9" * 5000, b"PAR1"),
]
mutations = st.lists(
    st.tuples(
        st.floats(0, 1),  # where, as a share of the file
        st.integers(0, 40) | st.integers(0, 100_000),  # how many bytes go
        st.sampled_from(SIGNS) | st.binary(max_size=8),  # what comes in their place
        st.booleans(),  # whether what went comes back behind it
    ),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, changes: list[tuple[float, int, bytes, bool]]) -> bytes:
    for share, count, comes, again in changes:
        at = int(share * len(content))
        gone = content[at : at + count]
        content = content[:at] + comes + (gone if again else b"") + content[at + count :]
    return content


def read_whole(path: Path, options: ReadOptions) -> None:
    """Raises AssertionError where the records are not as promised."""
    found = list(read_rows(path, options))
    lines = [record.line for record in found]
    assert found, "a file without rows has a problem, too"
    assert lines[0] >= 1
    assert not any(isinstance(record, FileProblem) for record in found[:-1])
    assert all(a <= b for a, b in pairwise(lines[:-1]))
    for record in found:
        if isinstance(record, RowProblem | FileProblem):
            assert len(record.message) < 1500, record.message
            assert record.message.isprintable(), record.message


def fuzz(folder: Path, number: int, examples: int) -> None:
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    target = folder / "mutated"

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(sorted(files)), mutations, st.sampled_from(["dpo", "supervised"]), st.booleans())
    def damaged(name: str, changes: list[tuple[float, int, bytes, bool]], method: str, columns: bool) -> None:
        target.write_bytes(mutated(files[name], changes))
        renamed = {"prompt": "question"} if columns else {}
        read_whole(target, ReadOptions(method, renamed, "all"))  # type: ignore[arg-type]

    damaged()


if __name__ == "__main__":
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    fuzz(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
