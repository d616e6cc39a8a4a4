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


def run_worker(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder; a crash is a return code, with a traceback on stderr."""
    path = Path(__file__).parent / script
    return _run(["-X", "faulthandler", str(path), *arguments], {})


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
