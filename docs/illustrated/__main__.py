"""`make illustrated`: writes docs/dpo.md and docs/figures anew."""

from __future__ import annotations

import torch

from illustrated.experiment import run
from illustrated.page import DOCS, documents


def main() -> None:
    torch.set_num_threads(1)
    made = documents(run())
    (DOCS / "figures").mkdir(exist_ok=True)
    for path, text in made.items():
        (DOCS / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
