"""Runs a _hostcuda with a planted defect beside a sound one, in a process that the defect may ruin; see test_hostcuda.

usage: defect_worker.py SOUND BROKEN KERNEL
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from hostcuda import build
from test_hostcuda import how_it_shows


def main(sound: Path, broken: Path, kernel: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        print(how_it_shows(build.load(sound), build.load(broken), kernel, patch), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
