"""`bench models`: Transformer layers and whole models with random weights, forward, one decoding step, training."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import seqkern

from . import memory, ours, zoo
from .report import LEGEND, milliseconds, percent, rows_table, table
from .session import Candidate, RowSpec, Session, peer_candidate
from .shapes import Read
from .targets import NO_TARGET
from .tasks import Array, Entry
from .zoo import ModelTask

CONTEXT = 128  # tokens in the cache before a decoding step


@dataclass(frozen=True)
class ModelRow:
    """`model` on a batch; length 0: images. kind: "forward", "decode" or "train"."""

    model: str
    batch: int
    length: int = 0
    kind: str = "forward"

    @property
    def label(self) -> str:
        sizes = f"({self.batch},{self.length})" if self.length else f"({self.batch})"
        return f"{self.model} {sizes}{'' if self.kind == 'forward' else ' ' + self.kind}"

    def task(self, mode: Mode) -> ModelTask:
        x = zoo.model_input(self.model, self.batch, CONTEXT if self.kind == "decode" else self.length)
        y_shape = x.shape if self.model == zoo.LAYER else (*x.shape, zoo.VOCABULARY.get(self.model, 0))
        dy = np.random.default_rng(1).standard_normal(y_shape, np.float32) if self.kind == "train" else None
        decode = x[:, :1] if self.kind == "decode" else None
        return ModelTask(self.model, mode.dtype, x, dy, decode, mode.int8)

    def reads(self, itemsize: int) -> tuple[Read, ...]:
        """A decoding step reads every weight of the layers and the head once."""
        if self.kind != "decode":
            return ()
        config = seqkern.models.GPT2Config()
        size = (config.count_parameters() - config.n_positions * config.n_embd) * itemsize
        return (Read(size, size),)


@dataclass(frozen=True)
class Mode:
    """One way of running a row; the peers run in `dtype` too."""

    title: str
    dtype: str = "float32"
    precision: str = "highest"
    int8: bool = False
    kinds: tuple[str, ...] = ("forward", "decode")


MODES = {
    "fp32": Mode("forward, float32, precision highest"),
    "high": Mode("forward, float32, precision high, against the peers' float32", precision="high", kinds=("forward",)),
    "bf16": Mode("forward, bfloat16", dtype="bfloat16"),
    "int8": Mode("decoding with int8 weights, against the peers' float32", int8=True, kinds=("decode",)),
    "train": Mode("forward + backward, float32", kinds=("train",)),
}
QUICK = (ModelRow(zoo.LAYER, 1, 128), ModelRow(zoo.GPT2, 1, 32))
ROWS = (
    *(ModelRow(zoo.LAYER, batch, length) for batch in (1, 8) for length in (128, 512)),
    ModelRow(zoo.GPT2, 1, 128),
    *(ModelRow(zoo.BERT, batch, 128) for batch in (1, 8)),
    *(ModelRow(zoo.VIT, batch) for batch in (1, 8)),
    ModelRow(zoo.SWIN, 1),
    ModelRow(zoo.GPT2, 1, 1, "decode"),
    ModelRow(zoo.LAYER, 8, 128, "train"),
    ModelRow(zoo.GPT2, 4, 64, "train"),
    ModelRow(zoo.LSTM, 32, 50, "train"),
)


def run(session: Session) -> None:
    """Mode after mode, then the memory of each row and where the time of an encoder layer goes."""
    rows = QUICK if session.options.quick else ROWS
    absent = [name for name in ("torch.compile", "ctranslate2") if name not in session.names()]
    if absent and session.peers:
        session.note(f"{' and '.join(absent)} did not take part: name them in --against")
    measured: list[tuple[ModelRow, str, Mode]] = []
    for name, mode in MODES.items():
        specs = [row_spec(session, row, name, mode) for row in rows if row.kind in mode.kinds]
        results = session.run(session.wanted(specs), f"models {name}")
        if results:
            print(f"\nmodels (batch,length), {mode.title}, {session.options.threads} threads; {LEGEND}")
            print("read bw: the time of merely reading the weights, over ours\n")
            print(rows_table(results, session.names(), [NO_TARGET] * len(results)))
        labels = {result.spec.label for result in results}
        measured += [(row, name, mode) for row in rows if row.kind in mode.kinds and row.label in labels]
    if measured:
        memory.print_table(measured, CONTEXT)
    for layer in (row for row in rows if row.model == zoo.LAYER and row.kind == "forward"):
        if session.wanted([row_spec(session, layer, "fp32", MODES["fp32"])]):
            print_where(layer, session.options.threads)


def row_spec(session: Session, row: ModelRow, name: str, mode: Mode) -> RowSpec:
    """One row in one mode."""
    itemsize = 1 if mode.int8 else 2 if mode.dtype == "bfloat16" else 4
    return RowSpec(
        family="models",
        group="models",
        label=row.label,
        mode=name,
        shape=(row.batch, row.length),
        dtype="int8 weights" if mode.int8 else mode.dtype,
        threads=session.options.threads,
        width=1 + len(session.peers),
        candidates=partial(candidates, session, row, mode),
        check="float32" if mode.dtype == "float32" and not mode.int8 else "bfloat16",
        reads=row.reads(itemsize),
    )


def candidates(session: Session, row: ModelRow, mode: Mode) -> list[Candidate]:
    """Ours first, then the peers that run the model."""
    task, threads = row.task(mode), session.options.threads
    job = {"forward": "model", "decode": "model_decode", "train": "model_train"}[row.kind]
    return [
        Candidate(ours.NAME, partial(entry_of(row.kind), task), ours.settings(threads, mode.precision)),
        *(peer_candidate(peer, threads, job, task) for peer in session.peers),
    ]


def entry_of(kind: str) -> Callable[..., Entry]:
    return {"forward": forward_entry, "decode": decode_entry, "train": train_entry}[kind]


def forward_entry(task: ModelTask, module: Any = None) -> Entry:
    """`model(x)`; results: logits, or the last hidden state. module: instead of one with torch's weights."""
    module = module or zoo.our_module(task)
    x = task.x if task.x.dtype.kind == "i" else ours.cast(task.x, task.dtype)
    return Entry(lambda: module(x), lambda: [ours.as_float32(zoo.first_array(module(x)))])


def decode_entry(task: ModelTask, module: Any = None) -> Entry:
    """One token against a cache of `CONTEXT` others, which is put back after every call; results: logits."""
    module = module or zoo.our_module(task)
    if task.int8:
        module.quantize_int8()
    cache = module.new_cache()
    module(task.x, cache=cache)

    def call() -> Any:
        for entry in cache:
            entry.length = CONTEXT
        return module(task.decode, cache=cache).logits

    return Entry(call, lambda: [ours.as_float32(call())])


def train_entry(task: ModelTask, module: Any = None) -> Entry:
    """`vjp` and its pullback; results: the output."""
    module = module or zoo.our_module(task)

    def call() -> Array:
        module.zero_grad()
        output, pullback = module.vjp(task.x)
        pullback(task.dy)
        result: Array = zoo.first_array(output)
        return result

    return Entry(call, lambda: [call()])


# --- where the time goes ---------------------------------------------------------------------


@contextmanager
def timed_kernels(totals: dict[str, list[float]]) -> Iterator[None]:
    """Within, every call into the compiled module adds [seconds, calls] under its name."""
    module: Any = importlib.import_module("seqkern._cpu")
    names = [n for n in dir(module) if n.endswith(("_forward", "_backward", "_int8"))]
    kept = {name: getattr(module, name) for name in names}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            entry = totals.setdefault(name, [0.0, 0])
            entry[0] += time.perf_counter() - start
            entry[1] += 1
            return result

        return call

    try:
        for name, function in kept.items():
            setattr(module, name, timed(name, function))
        yield
    finally:
        for name, function in kept.items():
            setattr(module, name, function)


def print_where(row: ModelRow, threads: int, calls: int = 10) -> None:
    """A table of the kernels of one row: time, share, calls; the rest is Python and NumPy."""
    ours.settings(threads)()
    entry = forward_entry(row.task(MODES["fp32"]))
    entry.call()
    totals: dict[str, list[float]] = {}
    start = time.perf_counter()
    with timed_kernels(totals):
        for _ in range(calls):
            entry.call()
    whole = time.perf_counter() - start
    totals["Python and NumPy"] = [whole - sum(seconds for seconds, _ in totals.values()), 0]
    lines = [
        [name, f"{count / calls:g}" if count else "", milliseconds(seconds / calls), percent(seconds / whole)]
        for name, (seconds, count) in sorted(totals.items(), key=lambda item: -item[1][0])
    ]
    print(f"\nwhere the time of {row.label} goes, float32, {threads} threads\n")
    print(table(["kernel", "calls", "ms", "share"], lines))
