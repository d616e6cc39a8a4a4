"""Fresh interpreters: for environment variables, and for what may kill the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LIMIT_S = 600


def run_python(code: str, **environment: str) -> str:
    """What `code` prints in a fresh interpreter with these environment variables."""
    result = _run(["-c", code], environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def run_worker(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder; a crash is a return code, with a traceback on stderr."""
    path = Path(__file__).parent / script
    return _run(["-X", "faulthandler", str(path), *arguments], environment)


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    fixed = ["setarch", "-R"] if "libtsan" in environment.get("LD_PRELOAD", "") else []  # TSan wants its addresses
    return subprocess.run(
        [*fixed, sys.executable, *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
