"""`python stub_worker.py OPTIONS…`: a real worker whose trainer is the stub, with these options for `train`."""

from __future__ import annotations

import sys

from control_plane.settings import Settings
from tests.worker.stubs import stub_programs
from worker.main import run

if __name__ == "__main__":
    run(Settings(), stub_programs(sys.argv[1:]))
