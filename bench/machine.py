"""Which code ran on which machine: the part of every record that is not a number."""

from __future__ import annotations

import functools
import importlib
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import seqkern


@dataclass(frozen=True)
class Machine:
    """commit is git's short hash (`-dirty` when files differ), else the package's version."""

    commit: str
    version: str
    cpu: str
    isa: str


@functools.cache
def this_machine() -> Machine:
    """Asked once per process."""
    version = str(getattr(seqkern, "__version__", "unknown"))
    return Machine(git_commit() or version, version, cpu_model(), active_isa())


def git_commit(folder: Path | None = None) -> str | None:
    """The commit of the source tree this package runs from; None outside of a repository."""
    folder = folder or Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def cpu_model() -> str:
    """The CPU's name as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def active_isa() -> str:
    """The instruction set the kernels use now."""
    try:
        compiled = importlib.import_module("seqkern._cpu")
    except ImportError:
        return "none (no compiled module)"
    return str(compiled.active_isa())
