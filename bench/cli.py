"""The command line of `python -m seqkern bench`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import compare, peers, plot
from .machine import this_machine
from .progress import Progress
from .records import Writer
from .session import Options, Session


@dataclass(frozen=True)
class Family:
    """A group of rows: `module` has `run(session)`."""

    module: str
    summary: str


FAMILIES = {
    "rnn": Family(".rnn", "whole LSTM, GRU and RNN modules, forward and backward"),
    "cells": Family(".cells", "one call of a cell from Python, one thread"),
    "charrnn": Family(".charrnn", "one training step of examples/char_rnn.py"),
    "ragged": Family(".ragged", "batches of sequences of different lengths"),
    "threads": Family(".scaling", "--threads against one, and beside another busy process"),
    "linear": Family(".linear", "x W^T + b"),
    "norms": Family(".norms", "norms, GELU, softmax and embedding of large arrays"),
    "conv": Family(".conv", "convolution layers of ViT, VGG and wav2vec 2.0"),
    "attention": Family(".attention", "scaled dot-product attention"),
    "models": Family(".models", "Transformer layers and whole models"),
}
MODES = ("fp32", "high", "bf16w", "bf16", "int8", "train", "train bf16")  # each family takes those it has
ROUNDS, QUICK_ROUNDS = 7, 3
DEFAULT_THREADS = 2

_EPILOG = """examples:
  python -m seqkern bench --quick
      check every kernel against the NumPy reference, then a small table, in about a minute
  python -m seqkern bench rnn --against torch,onnxruntime,openvino --json rnn.json --plot rnn.png
  python -m seqkern bench rnn --rows "lstm (100,32" --modes fp32,train
  python -m seqkern bench --compare old.json new.json

Everything in a row is measured interleaved in one run: quote ratios, not milliseconds. A/A is our
own code against itself, that is, how far a ratio can be off.
"""


class UsageError(Exception):
    """The command line asks for something that is not there."""


def main(argv: Sequence[str]) -> int:
    """Run `bench`; 0 done, 1 the self-test failed or a comparison is slower, 2 wrong usage."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.compare:
            return compare.report(Path(arguments.compare[0]), Path(arguments.compare[1]))
        options = options_from(arguments)
        if arguments.quick and not arguments.families and _selftest_failed():
            return 1
        return run(options)
    except (UsageError, plot.PlotError, ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All options with their help."""
    lines = [f"  {name:10} {family.summary}" for name, family in FAMILIES.items()]
    parser = argparse.ArgumentParser(
        prog="python -m seqkern bench",
        description="Measure seqkern beside other libraries.\n\nfamilies:\n" + "\n".join(lines),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("families", nargs="*", metavar="FAMILY", help="what to measure; default: all there is")
    add("--quick", action="store_true", help="few rows, short turns: about a minute")
    add(
        "--against",
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(peers.KNOWN)}; 'none' for ours alone; default: "
        "those of the first three that are installed (with --quick also numpy)",
    )
    add("--threads", metavar="N", help=f"a number or 'all'; default: {DEFAULT_THREADS}")
    add("--json", metavar="FILE", type=Path, help="write one JSON line per row and contender")
    add("--plot", metavar="FILE", type=Path, help="draw the ratios (needs matplotlib)")
    add("--rows", metavar="TEXT", default="", help="only rows whose name or class contains TEXT")
    add("--modes", metavar="NAMES", help=f"comma-separated, of {', '.join(MODES)}")
    add("--rounds", metavar="N", type=int, help=f"turns per contender; default: {ROUNDS}")
    add("--compare", nargs=2, metavar=("OLD", "NEW"), help="report what changed between two files")
    return parser


def options_from(arguments: argparse.Namespace) -> Options:
    """The checked options; UsageError says what is wrong with one."""
    families = tuple(arguments.families) or _default_families(arguments.quick)
    _check_names("family", families, FAMILIES)
    modes = _names(arguments.modes)
    _check_names("mode", modes, MODES)
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    if rounds < 1:
        raise UsageError(f"--rounds must be at least 1, got {rounds}")
    if arguments.plot is not None:
        plot.require_matplotlib()
    return Options(
        families=families,
        against=_against(arguments),
        threads=_threads(arguments.threads),
        quick=arguments.quick,
        rows=arguments.rows,
        modes=modes,
        rounds=rounds,
        json=arguments.json,
        plot=arguments.plot,
    )


def _default_families(quick: bool) -> tuple[str, ...]:
    return ("rnn",) if quick else tuple(FAMILIES)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _check_names(what: str, names: Sequence[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}; there are {', '.join(known)}")


def _against(arguments: argparse.Namespace) -> tuple[str, ...]:
    if arguments.against is None:
        installed = tuple(name for name in peers.FRAMEWORKS if not peers.missing(name))
        return (*installed, peers.NUMPY) if arguments.quick else installed
    names = _names(arguments.against)
    if names == ("none",):
        return ()
    _check_names("peer", names, peers.KNOWN)
    return tuple(dict.fromkeys(names))


def _threads(text: str | None) -> int:
    available = _available_cores()
    if text is None:
        return min(DEFAULT_THREADS, available)
    if text == "all":
        return available
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--threads must be a number from 1 or 'all', got {text!r}")
    return int(text)


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _selftest_failed() -> bool:
    from seqkern import selftest

    print("checking every kernel against the NumPy reference")
    failed: bool = selftest.main(quick=True, progress=Progress) != 0
    print()
    return failed


def run(options: Options) -> int:
    """Measure, print, and write what was asked for."""
    loaded, skipped = peers.load(options.against, options.threads)
    writer = Writer(options.json)
    session = Session(options, writer, loaded)
    for name, reason in skipped.items():
        session.note(f"{name} skipped: {reason}")
    absent = [name for name in peers.FRAMEWORKS if name not in session.names()]
    if absent and options.judged:
        session.note(f"'best peer' is of those that ran, without {', '.join(absent)}")
    print_header(session)
    try:
        for name in options.families:
            importlib.import_module(FAMILIES[name].module, __package__).run(session)
    finally:
        writer.close()
        print_notes(session)
    if not writer.records:
        raise UsageError("nothing was measured: no row matches --rows and --modes")
    if options.plot is not None:
        plot.draw(writer.records, options.plot)
        print(f"chart: {options.plot}")
    if options.json is not None:
        print(f"records: {options.json}")
    return 0


def print_header(session: Session) -> None:
    """Machine, code and protocol."""
    machine, plan = this_machine(), session.harness.plan
    named = [f"{peer.name} {peers.version(peer.name)}" for peer in session.peers]
    print(f"seqkern {machine.version} ({machine.commit}), {machine.isa}, {machine.cpu}")
    print(f"against: {', '.join(named) or 'nobody'}")
    print(
        f"{plan.rounds} rounds of turns in rotating order; a turn pauses {plan.pause * 1e3:g} ms, "
        f"warms up {plan.warm_up * 1e3:g} ms, times {plan.burst * 1e3:g} ms"
    )
    if hasattr(os, "getloadavg"):
        print(f"load average before the run: {os.getloadavg()[0]:.2f}")


def print_notes(session: Session) -> None:
    if session.notes:
        print("\nnotes:")
        for note in session.notes:
            print(f"- {note}")
