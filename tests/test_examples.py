"""Every example runs, at a tiny size; an interrupted training resumes to the bit."""

from __future__ import annotations

import importlib.util
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import seqkern
from safetensors.numpy import load_file
from seqkern import models, optim

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
MESSAGES = {
    "Yes": "Oui", "abbrev. month\4June": "juin", "Database error": "Erreur de base de données",
    "%(count)d items": "%(count)d éléments", "Today\u2019s news": "Nouvelles d\u2019aujourd\u2019hui", "Empty": "",
    "%d user\0%d users": "%d utilisateur\0%d utilisateurs", "A message of too many words": "Un message trop long",
}  # fmt: skip
TINY = ["--hidden", "8", "--batch", "4", "--every", "3", "--plot", ""]


def command(name: str, *args: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / name), *args]


def environment() -> dict[str, str]:
    """The child finds the same seqkern as this process."""
    package = Path(seqkern.__file__).resolve().parents[1]
    return os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def run(folder: Path, name: str, *args: str) -> str:
    done = subprocess.run(
        command(name, *args), cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "caption_shapes.py", "char_rnn.py", "date_rewriting.py", "digits_rows.py", "digits_vit.py",
        "draw_from_vector.py", "forecast.py", "gpt_vs_lstm.py", "moving_objects.py", "question_spans.py", "tones.py",
        "word2vec_topics.py", "word_translation.py",
    ],
)  # fmt: skip
def test_help(name: str, tmp_path: Path) -> None:
    assert "--checkpoint FILE" in run(tmp_path, name, "--help")


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_char_rnn_trains_and_samples(cell: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    sizes = [*TINY, "--cell", cell, "--layers", "2", "--seq-len", "10"]
    out = run(tmp_path, "char_rnn.py", "--text", "text.txt", "--steps", "6", *sizes)
    assert "6 steps, 240 characters" in out and "nats per character" in out
    written = run(tmp_path, "char_rnn.py", "--sample", "30", "--temperature", "0.5")
    assert len(written) == 31 and set(written) <= set(TEXT)
    assert written == run(tmp_path, "char_rnn.py", "--sample", "30", "--temperature", "0.5")


def test_char_rnn_default_text_and_time_limit(tmp_path: Path) -> None:
    out = run(
        tmp_path, "char_rnn.py", *TINY, "--every", "1000", "--minutes", "0.001", "--embedding", "0"
    )
    assert "nats per character" in out


def test_char_rnn_draws_its_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws the loss curve")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    run(tmp_path, "char_rnn.py", "--text", "text.txt", "--steps", "4", *TINY, "--plot", "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "says", "own"),
    [
        ("digits_rows.py", "held-out accuracy", []),
        ("digits_vit.py", "attention roll-out: digits_vit_rollout.png", []),
        ("forecast.py", "noise alone", []),
        ("draw_from_vector.py", "of a variance of", []),
        ("caption_shapes.py", "of captions right", ["--pictures", "8"]),
        ("date_rewriting.py", "accuracy against length", ["--dates", "2", "--tests", "4"]),
        ("moving_objects.py", "counted right", []),
        ("question_spans.py", "answers exactly right", []),
        ("question_spans.py", "summaries exactly right", ["--task", "summary"]),
        ("tones.py", "held-out accuracy", []),
        ("gpt_vs_lstm.py", "curves: curve.png; attention: curve-attention.png",
         ["--text", "text.txt", "--seq-len", "16", "--width", "8", "--gpt-layers", "1"]),
        ("word_translation.py", "accuracy against length", ["--mo", "fr.mo", "--messages", "2", "--tests", "4"]),
        ("word2vec_topics.py", "mean reciprocal rank", []),
    ],
)
def test_the_others_run(name: str, says: str, own: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws the loss curve")
    if name.startswith("digits"):
        pytest.importorskip("sklearn", reason="scikit-learn has the digits")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    write_catalog(tmp_path / "fr.mo", MESSAGES)
    sizes = [*TINY, "--steps", "4", "--plot", "curve.png", "--checkpoint", "run.safetensors", *own]
    out = run(tmp_path, name, *sizes)
    assert says in out
    assert (tmp_path / "curve.png").stat().st_size > 1000
    if name in ("date_rewriting.py", "digits_vit.py", "forecast.py", "gpt_vs_lstm.py", "word_translation.py"):
        assert says in run(tmp_path, name, *sizes, "--resume")


def write_catalog(path: Path, messages: dict[str, str]) -> None:
    """A compiled catalog as GNU msgfmt writes it, the header entry first."""
    pairs = sorted(({"": "Content-Type: text/plain; charset=UTF-8\n"} | messages).items())
    texts = [[text.encode() for text in side] for side in zip(*pairs, strict=True)]
    tables, data, at = [], b"", 28 + 16 * len(pairs)
    for side in texts:
        for text in side:
            tables.append(struct.pack("<II", len(text), at + len(data)))
            data += text + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    path.write_bytes(head + b"".join(tables) + data)


def test_word_translation_reads_catalogs(tmp_path: Path) -> None:
    """Words only, contexts and plurals understood, each source once; what is no catalog is said by name."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        tool = importlib.import_module("word_translation")
    finally:
        sys.path.remove(str(EXAMPLES))
    write_catalog(tmp_path / "a.mo", MESSAGES)
    pairs = tool.read_messages([tmp_path / "a.mo"], 3)
    assert pairs == [
        (["database", "error"], ["erreur", "de", "base", "de", "données"]), (["june"], ["juin"]),
        (["today\u2019s", "news"], ["nouvelles", "d\u2019aujourd\u2019hui"]), (["yes"], ["oui"]),
    ]  # fmt: skip
    assert tool.read_messages([tmp_path / "a.mo"], 1) == [(["june"], ["juin"]), (["yes"], ["oui"])]
    (tmp_path / "b.mo").write_bytes(b"no catalog at all, but long enough")
    for bad in ("b.mo", "missing.mo"):
        with pytest.raises(SystemExit, match=f"--mo: '.*{bad}' is no message catalog"):
            tool.read_messages([tmp_path / bad], 3)
    done = subprocess.run(
        command("word_translation.py", "--language", "xx"), cwd=tmp_path, env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "pip download --no-deps django" in done.stderr


def test_gradients_over_distance(tmp_path: Path) -> None:
    """What its docstring claims: the RNN's vanishes or explodes, open gates hand it on."""
    pytest.importorskip("matplotlib", reason="matplotlib draws the curves")
    out = run(tmp_path, "gradients_over_distance.py", "--length", "100", "--hidden", "16")
    left = {line.split(":")[0].strip(): float(line.split(":")[1].split()[0]) for line in out.splitlines()[:6]}
    assert left["RNN, weights 0.9"] < 1e-3 and left["RNN, weights 2"] > 1e3
    assert left["LSTM, forget gates open"] > 1e3 * left["LSTM, as drawn"] and left["LSTM, forget gates open"] > 1e-2
    assert left["GRU, update gates keep"] > 1e3 * left["GRU, as drawn"] and left["GRU, update gates keep"] > 1e-2
    assert (tmp_path / "gradients_over_distance.png").stat().st_size > 1000


def test_bad_resumes_say_why(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    run(tmp_path, "char_rnn.py", "--text", "text.txt", "--steps", "1", *TINY)
    for args, says in (
        (["--lr", "1.0"], "other settings: ['lr']"),
        (["--checkpoint", "none.safetensors"], "there is no checkpoint at none.safetensors"),
    ):
        done = subprocess.run(
            command("char_rnn.py", "--text", "text.txt", "--resume", *TINY, *args),
            cwd=tmp_path, env=environment(), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1 and says in done.stderr


# --- resuming ---------------------------------------------------------------------------------


def test_char_rnn_resumes_to_the_bit_after_ctrl_c(tmp_path: Path) -> None:
    """Whenever the signal comes, the resumed run ends with the bits of the undisturbed one."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    args = [
        "--text",
        "text.txt",
        "--steps",
        "200",
        "--layers",
        "2",
        "--dropout",
        "0.4",
        *TINY,
        "--every",
        "50",
    ]
    run(tmp_path, "char_rnn.py", *args, "--checkpoint", "whole.safetensors")

    halves = tmp_path / "halves.safetensors"
    child = subprocess.Popen(
        command("char_rnn.py", *args, "--checkpoint", halves.name),
        cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not halves.exists() and child.poll() is None:
        time.sleep(0.002)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=60) == 0
    run(tmp_path, "char_rnn.py", *args, "--checkpoint", halves.name, "--resume")

    whole, resumed = load_file(tmp_path / "whole.safetensors"), load_file(halves)
    assert set(whole) == set(resumed)
    for name, value in whole.items():
        np.testing.assert_array_equal(value, resumed[name], err_msg=name)


class CrashError(Exception):
    pass


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_stories_are_labelled_by_their_sentences(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer follows the name and the words before it; wanted are the sentences with the person's name in them."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    tool = load("question_spans")

    def sentences(ids: np.ndarray, types: np.ndarray) -> list[list[str]]:
        words = [[tool.WORDS[k] for k in ids[types == number]] for number in range(types.max() + 1)]
        return [[word for word in sentence if word not in ("[pad]", tool.CLS, tool.SEP)] for sentence in words]

    for _ in range(200):
        ids, types, (first, last) = tool.question(tool.Story(rng), rng)
        request = " ".join(sentences(ids, types)[0])
        facts = ((name, *fact) for name in tool.NAMES for fact in tool.FACTS.items())
        [(name, before)] = [(name, before) for name, text, (before, _) in facts if text.format(name) == request]
        [sentence] = [" ".join(s) for s in sentences(ids, types)[1:] if " ".join(s).startswith(f"{name} {before} ")]
        answer = " ".join(tool.WORDS[k] for k in ids[first : last + 1])
        assert sentence == f"{name} {before} {answer} ."
        ids, types, wanted = tool.summary(tool.Story(rng), rng)
        (_, _, person), *others = sentences(ids, types)
        assert [person in sentence for sentence in others] == wanted[wanted >= 0].tolist()
        starts = np.flatnonzero(wanted >= 0)
        assert types[starts].tolist() == (types[starts - 1] + 1).tolist() == list(range(1, len(starts) + 1))


@pytest.mark.parametrize("optimizer", ["SGD", "Adagrad", "AdamW"])
def test_training_resumes_to_the_bit_after_a_crash(optimizer: str, tmp_path: Path) -> None:
    """A crash in step 7 falls back to the checkpoint of step 6; SIGINT in step 9 keeps step 9."""
    tool = load("_training")
    text = np.random.default_rng(0).integers(0, 5, (3, 200))

    def train(path: Path, disturbances: dict[int, Any]) -> Any:
        args = tool.parser("", steps=12).parse_args(["--every", "3", "--checkpoint", str(path)])
        args.resume = path.exists()
        seqkern.manual_seed(1)
        config = models.RNNLMConfig(5, 4, 6, num_layers=2, dropout=0.5)
        model = models.RNNLM(config)
        options = {"momentum": 0.9} if optimizer == "SGD" else {}
        made = getattr(optim, optimizer)(model.named_parameters(), **options)
        training = tool.Training(model, made, {"lr": args.lr}, path)

        def compute(step: int) -> float:
            if step in disturbances:
                disturbances.pop(step)()
            hx = (training.carry["h"], training.carry["c"]) if training.carry else None
            window = text[:, step * 10 : step * 10 + 11]
            loss, (h, c) = model.loss_and_grads(window[:, :-1], window[:, 1:], hx)
            training.carry = {"h": h, "c": c}
            return loss

        training.run(args, compute, evaluate=lambda: float(model(text).logits.max()))
        return training

    def crash() -> None:
        raise CrashError

    whole = train(tmp_path / "whole", {})
    path = tmp_path / "halves"
    with pytest.raises(CrashError):
        train(path, {7: crash})
    stopped = train(path, {8: lambda: os.kill(os.getpid(), signal.SIGINT)})
    assert stopped.step == 9
    resumed = train(path, {})
    assert resumed.step == 12
    assert resumed.history == whole.history
    for name, value in whole.model.state_dict().items():
        np.testing.assert_array_equal(value, resumed.model.state_dict()[name], err_msg=name)
    for name, value in whole.optimizer.state_dict().items():
        np.testing.assert_array_equal(value, resumed.optimizer.state_dict()[name], err_msg=name)
