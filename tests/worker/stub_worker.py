"""`python stub_worker.py OPTIONS…`: a real worker whose trainer is the stub, with these options for `train`.

It imports no more than that needs: every test that kills a worker starts one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from control_plane.settings import Settings
from tests import stub_trainer
from worker.launch import Programs
from worker.main import run


def stub_programs(options: Sequence[str] = (), validate: Sequence[str] = ()) -> Programs:
    stub = (sys.executable, stub_trainer.__file__)
    return Programs(validate=(*stub, "validate", *validate), train=(*stub, "train", *options))


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD", None)  # a clock that jumps (tests/faults/kinds/clock.py) is ours, not our trainers'
    run(Settings(), stub_programs(sys.argv[1:]))
