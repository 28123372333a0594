"""docs/dpo.md and its figures are what `make illustrated` makes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from illustrated.experiment import Results
from illustrated.page import DOCS, documents


def test_the_page_and_its_figures_are_up_to_date(results: Results) -> None:
    made = documents(results)
    stale = [str(path) for path, text in made.items() if (DOCS / path).read_text(encoding="utf-8") != text]
    assert not stale, "run `make illustrated`"
    assert {path.name for path in (DOCS / "figures").iterdir()} == {path.name for path in made if path.suffix == ".svg"}


def test_every_figure_is_shown_and_well_formed(results: Results) -> None:
    made = documents(results)
    for path, text in made.items():
        if path.suffix == ".svg":
            assert f"]({path.as_posix()})" in made[Path("dpo.md")]
            title = ElementTree.fromstring(text).find("{http://www.w3.org/2000/svg}title")  # noqa: S314 (our own text)
            assert title is not None and title.text
