"""The training loop the examples share: progress bar, loss history, checkpoints.

A checkpoint is one safetensors file, written under another name and then renamed, so that a
crash leaves the previous one whole. It holds the model, the optimiser, whatever the example
carries from step to step, and every loss so far. A run of `steps` steps that was interrupted
anywhere and resumed gives the same bits as one that was not. (With `minutes` it cannot, since
the learning rate then follows the clock.)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import seqkern
from safetensors import safe_open
from safetensors.numpy import save
from seqkern import models, optim, plot


def parser(doc: str | None, steps: int, **defaults: Any) -> argparse.ArgumentParser:
    """The options all examples have, with the defaults of this one."""
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("--cell", choices=["rnn", "lstm", "gru"], default="lstm")
    add("--hidden", type=int, default=64, help="units per layer")
    add("--layers", type=int, default=1)
    add("--steps", type=int, help=f"updates of the parameters (default {steps})")
    add("--minutes", type=float, help="train for this time instead, or at most for it")
    add("--batch", type=int, default=32)
    add("--lr", type=float, default=3e-3, help="the highest learning rate")
    add("--clip", type=float, default=1.0, help="largest norm of the gradients")
    add("--every", type=int, default=100, help="steps between evaluation and checkpoint")
    add("--seed", type=int, default=0)
    add("--checkpoint", type=Path, metavar="FILE", help="safetensors file to write and resume")
    add("--resume", action="store_true", help="continue from the checkpoint")
    picture = "picture of the loss to save, .png or .svg (default: %(default)s; '': none)"
    add("--plot", metavar="FILE", help=picture)
    result.set_defaults(default_steps=steps, **defaults)
    return result


def schedule(progress: float) -> float:
    """Learning rate over the run: up in its first hundredth, then half a cosine down to 2 %."""
    return optim.cosine(round(1e4 * progress), total_steps=10_000, warmup_steps=100, final=0.02)


def sequence_training(args: argparse.Namespace, *names: str, front: Any = None, **sizes: Any) -> Training:
    """A SequenceModel of the options' and these sizes, and AdamW.

    front: a function that makes the model's front. names: the example's own options, which a resumed run
    must share, as it must --batch, --lr and --seed.
    """
    seqkern.manual_seed(args.seed)
    core = {"hidden_size": args.hidden, "num_layers": args.layers, "cell": args.cell}
    model = models.SequenceModel(models.SequenceModelConfig(**core, **sizes), front and front())
    settings = {"config": vars(model.config)}
    settings |= {name: getattr(args, name) for name in ("batch", "lr", "seed", *names)}
    return Training(model, optim.AdamW(model.named_parameters()), settings, args.checkpoint)


def draw_rows(args: argparse.Namespace, step: int, count: int) -> np.ndarray:
    """The batch of a step: numbers below count that depend on the seed and the step alone."""
    return np.random.default_rng([args.seed, step]).integers(0, count, args.batch)


def mean_square(error: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean of error^2 and its gradient."""
    return float(np.mean(error**2)), 2 * error / error.size


@dataclass
class Training:
    """A model on its way.

    settings: for JSON; a checkpoint is only resumed under the same settings.
    carry: arrays that go from step to step beside the parameters, such as recurrent states.
    history: curve name -> list of (step, loss), and the gradients' norm at every step, before it was clipped.
    held_out: the loss when it was last evaluated.
    interrupted: whether Ctrl-C ended the run.
    """

    model: Any
    optimizer: Any
    settings: dict[str, Any]
    checkpoint: Path | None = None
    step: int = 0
    seconds: float = 0.0
    held_out: float = math.nan
    interrupted: bool = False
    carry: dict[str, np.ndarray] = field(default_factory=dict)
    history: dict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: {"training": [], "held out": [], "gradient norm": []}
    )

    def save(self) -> None:
        """Write the checkpoint, if there is to be one."""
        if self.checkpoint is None:
            return
        arrays = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        arrays |= {f"optimizer.{k}": v for k, v in self.optimizer.state_dict().items()}
        arrays |= {f"carry.{name}": value for name, value in self.carry.items()}
        arrays |= {
            f"history.{name}": np.array(points, np.float64).reshape(-1, 2)
            for name, points in self.history.items()
        }
        progress = {"settings": self.settings, "step": self.step, "seconds": self.seconds}
        arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
        temporary = self.checkpoint.with_name(self.checkpoint.name + ".tmp")
        temporary.write_bytes(save(arrays, metadata={"training": json.dumps(progress)}))
        os.replace(temporary, self.checkpoint)

    def resume(self) -> None:
        """Continue from the checkpoint."""
        progress, groups = read_checkpoint(self.checkpoint)
        if progress["settings"] != self.settings:
            theirs, ours = progress["settings"], self.settings
            changed = [key for key in ours if theirs.get(key) != ours[key]]
            raise SystemExit(f"{self.checkpoint} was made with other settings: {changed}")
        self.model.load_state_dict(groups["model"])
        self.optimizer.load_state_dict(groups["optimizer"])
        self.carry = groups.get("carry", {})
        self.history = {
            name: [(float(step), float(loss)) for step, loss in points]
            for name, points in groups["history"].items()
        }
        self.held_out = ([math.nan] + [loss for _, loss in self.history["held out"]])[-1]
        self.step, self.seconds = progress["step"], progress["seconds"]

    def run(
        self,
        args: argparse.Namespace,
        compute: Callable[[int], float],
        evaluate: Callable[[], float],
        report: Callable[[], str] | None = None,
    ) -> None:
        """Train until --steps steps or --minutes have gone by, or Ctrl-C.

        compute(step) adds the gradients of one step and returns its loss. Every --every steps,
        evaluate() gives the held-out loss and report() a text to print.
        """
        if args.resume:
            self.resume()
        start = time.perf_counter() - self.seconds
        with _ctrl_c() as pressed, _progress_bar() as bar:
            while not pressed() and (progress := self._progress(args)) < 1:
                # Dropout's draws depend on the step alone: nothing more to save for a resume.
                seqkern.manual_seed(args.seed + self.step)
                self.model.train().zero_grad()
                loss = compute(self.step)
                if not np.isfinite(loss):
                    raise SystemExit(f"the loss is {loss} at step {self.step}: try a smaller --lr")
                norm = optim.clip_grad_norm_(self.model.parameters(), args.clip)
                self.optimizer.lr = args.lr * schedule(progress)
                self.optimizer.step()
                self.step += 1
                self.history["training"].append((self.step, loss))
                self.history["gradient norm"].append((self.step, norm))
                self.seconds = time.perf_counter() - start
                bar.advance(self._progress(args), self.step, loss)
                if self.step % args.every == 0:
                    self._look(evaluate, report, bar)
                    self.save()
            if self.step not in dict(self.history["held out"]):
                self._look(evaluate, None, bar, keep=not pressed())
            self.save()
            self.interrupted = pressed()
        self.model.eval()

    def _progress(self, args: argparse.Namespace) -> float:
        """Share of the run that is done: of its steps, or of its time if that is more."""
        by_time = self.seconds / (60 * args.minutes) if args.minutes else 0.0
        if args.steps is None and args.minutes:
            return by_time
        steps = args.default_steps if args.steps is None else args.steps
        return max(self.step / steps, by_time) if steps > 0 else 1.0

    def _look(
        self, evaluate: Callable[[], float], report: Any, bar: _Bar, keep: bool = True
    ) -> None:
        """Evaluate and report. What an interruption saw is not kept: it is no part of the run."""
        self.model.eval()
        bar.held_out = self.held_out = evaluate()
        if keep:
            self.history["held out"].append((self.step, self.held_out))
        if report is not None:
            bar.write(report())

    def plot(self, path: str, *, title: str, ylabel: str) -> bool:
        """Save the loss curves, training's as a running mean, above the gradients' norm; whether that could be done."""
        if not path or not self.history["training"]:
            return False
        curves = {"training": smooth(self.history["training"])}
        if self.history["held out"]:
            curves["held out"] = tuple(np.array(self.history["held out"]).T)
        norms = smooth(self.history["gradient norm"])
        try:
            plot.loss_curves(curves, path, title=title, ylabel=ylabel, gradient_norms=norms)
        except ImportError as error:
            print(f"no picture: {error}")
            return False
        print(f"loss curve: {path}")
        return True


def smooth(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the running mean over a two-hundredth of them."""
    steps, values = np.array(points).T
    width = max(1, len(values) // 200)
    return steps[width - 1 :], np.convolve(values, np.ones(width) / width, mode="valid")


def read_checkpoint(path: Path | None) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """What `Training.save` wrote: its progress, and its arrays by group."""
    if path is None or not path.exists():
        raise SystemExit(f"there is no checkpoint at {path}")
    groups: dict[str, dict[str, np.ndarray]] = {}
    with safe_open(path, "np") as file:
        progress = json.loads(file.metadata()["training"])
        for key in file.keys():  # noqa: SIM118 (the file is no mapping)
            group, _, name = key.partition(".")
            groups.setdefault(group, {})[name] = file.get_tensor(key)
    return progress, groups


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Inside the block Ctrl-C only sets a flag, so that no step is left half done."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


class _Bar:
    """tqdm's bar in per cent; without tqdm, a line now and then."""

    def __init__(self) -> None:
        self.held_out: float | None = None
        self._printed = time.perf_counter()
        try:
            from tqdm import tqdm
        except ImportError:
            self._tqdm: Any = None
            return
        form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self._tqdm = tqdm(total=100, bar_format=form, smoothing=0)

    def advance(self, progress: float, step: int, loss: float) -> None:
        now = time.perf_counter()
        text = f"step {step}, loss {loss:.3f}"
        if self.held_out is not None:
            text += f", held out {self.held_out:.3f}"
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(text, refresh=False)
            self._tqdm.update(min(100.0, 100 * progress) - self._tqdm.n)
        elif now - self._printed > 10:
            self._printed = now
            print(f"{100 * progress:3.0f}%, {text}", flush=True)

    def write(self, text: str) -> None:
        if self._tqdm is None:
            print(text, flush=True)
        else:
            self._tqdm.write(text)

    def close(self) -> None:
        if self._tqdm is not None:
            self._tqdm.close()


@contextmanager
def _progress_bar() -> Iterator[_Bar]:
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.close()
