"""`python -m seqkern info | selftest | bench`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import seqkern

_EPILOG = """examples:
  python -m seqkern info
  python -m seqkern selftest
  python -m seqkern bench --quick
  python -m seqkern bench rnn --against torch,onnxruntime,openvino --threads 2 --json rnn.json

`python -m seqkern COMMAND --help` tells more about a command.
"""

_COMPANIONS = ("ml_dtypes", "safetensors", "torch", "onnxruntime", "onnx", "openvino")


def bench_module(name: str) -> Any:
    """`seqkern.bench.<name>`; in a source tree, where nothing is installed, from `bench/`."""
    package = "seqkern.bench"
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        folder = Path(__file__).resolve().parents[2] / "bench"
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None or not (folder / "__init__.py").exists():
            raise ModuleNotFoundError(f"{package} is not installed and not at {folder}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[package] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{package}.{name}")


def info() -> int:
    """Print what this build is, what it runs on, and which companions are installed."""
    seqkern.show_config()
    print(f"\nsystem: {platform.platform()}\ninstalled beside it:")
    for name in _COMPANIONS:
        try:
            print(f"  {name}: {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"  {name}: not installed")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if arguments[:1] == ["bench"]:
        # The benchmark has options of its own; they are parsed where they are defined.
        return int(bench_module("cli").main(arguments[1:]))
    options = parser.parse_args(arguments)
    if options.command == "info":
        return info()
    from seqkern import selftest

    bar = bench_module("progress").Progress
    return selftest.main(quick=options.quick, only=options.only, progress=bar)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m seqkern",
        description="seqkern: recurrent and attention kernels for NumPy arrays.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser(
        "info",
        help="what this build is and runs on: versions, ISA, threads, CUDA device",
        description="Print versions, instruction sets, threads, CUDA device and build flags.",
    )
    check = commands.add_parser(
        "selftest",
        help="check every kernel against its NumPy reference (under a minute)",
        description="Compare every kernel, forward and backward, with the NumPy reference run in "
        "float64. Exits with 1 when an error exceeds its bound.",
    )
    check.add_argument("--quick", action="store_true", help="fewer shapes, a few seconds")
    check.add_argument("--only", metavar="TEXT", help="only kernels whose name contains TEXT")
    commands.add_parser(
        "bench",
        help="measure speed, beside other libraries where they are installed",
        add_help=False,
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
