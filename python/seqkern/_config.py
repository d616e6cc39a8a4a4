"""show_config: what was built and what runs."""

from __future__ import annotations

import platform

import numpy as np

from seqkern import _cpu
from seqkern._precision import get_matmul_precision
from seqkern._version import __version__


def config() -> dict[str, str]:
    """The lines of `show_config`."""
    from seqkern import _gpu

    available = _cpu.available_isas()
    return {
        "seqkern": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "isa": f"{_cpu.active_isa()} (available: {', '.join(available)})",
        "threads": str(_cpu.get_num_threads()),
        "matmul precision": get_matmul_precision(),
        "cuda": _gpu.describe(),
        "compiler": _cpu.compiler,
        "build type": _cpu.build_type,
    }


def show_config() -> None:
    """Print the version, instruction set, threads, CUDA device and build flags."""
    lines = config()
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")
