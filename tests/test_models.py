"""RNNLM against the NumPy assembly, gradients included; SequenceModel; files; plots."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqkern
from ml_dtypes import bfloat16
from seqkern import models, nn, optim, plot, reference

VOCAB, BATCH, WINDOW = 11, 3, 5


def make_lm(rng: np.random.Generator, **changes: Any) -> models.RNNLM:
    options: dict[str, Any] = {"embedding_size": 6, "hidden_size": 8, "num_layers": 2, **changes}
    return models.RNNLM(models.RNNLMConfig(VOCAB, **options), dtype=np.float64, rng=rng)


def random_window(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    ids, targets = rng.integers(0, VOCAB, (2, BATCH, WINDOW))
    targets[0, 1] = -100
    return ids, targets


def assert_close(ours: Any, theirs: Any) -> None:
    """float64: anything above rounding is a wrong formula."""
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-9, atol=1e-11)


def grads(model: Any) -> dict[str, np.ndarray]:
    return {name: p.grad for name, p in model.named_parameters()}


# --- RNNLM ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_rnnlm_matches_the_reference_over_windows(cell: str, rng: np.random.Generator) -> None:
    """Truncated BPTT over two windows: loss, logits, states, every gradient."""
    model = make_lm(rng, cell=cell)
    assert [name for name in model.state_dict() if not name.startswith("rnn.")] == [
        "embedding.weight",
        "head.weight",
        "head.bias",
    ]
    hx = states = None
    for _ in range(2):
        ids, targets = random_window(rng)
        model.zero_grad()
        logits, _ = model(ids, hx)
        loss, hx = model.loss_and_grads(ids, targets, hx)
        expected_logits, _ = reference.rnn_language_model(
            ids.T, model.state_dict(), cell=cell, num_layers=2, states=states
        )
        expected_loss, expected_grads, states = reference.rnn_language_model_loss(
            ids.T, targets.T, model.state_dict(), cell=cell, num_layers=2, states=states
        )
        assert_close(logits, expected_logits.swapaxes(0, 1))
        assert_close(loss, expected_loss)
        assert_close(hx, states)
        assert set(grads(model)) == set(expected_grads)
        for name, grad in grads(model).items():
            assert_close(grad, expected_grads[name])


def test_rnnlm_vjp_agrees_with_loss_and_grads(rng: np.random.Generator) -> None:
    model = make_lm(rng)
    ids, targets = random_window(rng)
    model.loss_and_grads(ids, targets)
    expected = grads(model)
    model.zero_grad()
    output, pullback = model.vjp(ids)
    loss = seqkern.nn.CrossEntropyLoss()
    (dlogits,) = loss.vjp(output.logits, targets)[1]()
    assert pullback(dlogits) == (None, None)
    for name, grad in grads(model).items():
        assert_close(grad, expected[name])
    with pytest.raises(RuntimeError, match="already called"):
        pullback(dlogits)


def test_rnnlm_gradient_of_the_state(rng: np.random.Generator) -> None:
    """dhx by central differences, in all three forms of the incoming gradient."""
    model = make_lm(rng, cell="gru")
    ids, _ = random_window(rng)
    hx, direction = rng.standard_normal((2, 2, BATCH, 8))
    output, pullback = model.vjp(ids, hx)
    dlogits, dhx = rng.standard_normal(output.logits.shape), rng.standard_normal(hx.shape)
    _, from_tuple = pullback((dlogits, dhx))
    _, from_output = model.vjp(ids, hx)[1](models.RecurrentOutput(dlogits, dhx))
    np.testing.assert_array_equal(from_tuple, from_output)

    def value(h: np.ndarray) -> float:
        logits, final = model(ids, h)
        return float(np.vdot(dlogits, logits) + np.vdot(dhx, final))

    eps = 1e-6
    slope = (value(hx + eps * direction) - value(hx - eps * direction)) / (2 * eps)
    assert np.vdot(from_tuple, direction) == pytest.approx(slope, rel=1e-6)


def test_rnnlm_one_hot_equals_an_identity_embedding(rng: np.random.Generator) -> None:
    one_hot = make_lm(rng, embedding_size=0)
    assert "embedding.weight" not in one_hot.state_dict()
    table = make_lm(rng, embedding_size=VOCAB)
    table.load_state_dict(one_hot.state_dict() | {"embedding.weight": np.eye(VOCAB)})
    ids, targets = random_window(rng)
    for model in (one_hot, table):
        model.loss_and_grads(ids, targets)
    assert_close(one_hot(ids).logits, table(ids).logits)
    for name, grad in grads(one_hot).items():
        assert_close(grad, grads(table)[name])


def test_rnnlm_tied_weights(rng: np.random.Generator) -> None:
    model = make_lm(rng, embedding_size=8, tie_weights=True)
    assert "head.weight" not in dict(model.named_parameters())
    untied: Any = make_lm(rng, embedding_size=8)
    untied.load_state_dict(model.state_dict())
    ids, targets = random_window(rng)
    for m in (model, untied):
        m.loss_and_grads(ids, targets)
    total = untied.embedding.weight.grad + untied.head.weight.grad
    assert_close(model.head.weight.grad, total)
    with pytest.raises(ValueError, match="tie_weights needs embedding_size == hidden_size = 8"):
        make_lm(rng, tie_weights=True)


def test_rnnlm_learns_a_cycle(rng: np.random.Generator) -> None:
    """End to end in float32: after 150 steps it continues 0 1 2 3 0 1 ... without a mistake."""
    config = models.RNNLMConfig(4, embedding_size=8, hidden_size=16)
    model = models.RNNLM(config, rng=rng)
    optimizer = optim.AdamW(model.named_parameters(), lr=0.02)
    text = (np.arange(24) + np.arange(4)[:, None]) % 4
    hx = None
    for _ in range(150):
        model.zero_grad()
        loss, hx = model.loss_and_grads(text[:, :-1], text[:, 1:], hx)
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss < 0.05
    out = model.generate(np.array([[2, 3, 0]]), 9, temperature=0)
    np.testing.assert_array_equal(out, [[2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1]])


def test_rnnlm_generate(rng: np.random.Generator) -> None:
    model = make_lm(rng, dropout=0.5)
    prompt = rng.integers(0, VOCAB, (2, 3))
    out = model.generate(prompt, 6, temperature=0.8, top_k=3, seed=1)
    assert out.shape == (2, 9)
    np.testing.assert_array_equal(out[:, :3], prompt)
    np.testing.assert_array_equal(out, model.generate(prompt, 6, temperature=0.8, top_k=3, seed=1))
    streamed = list(model.generate(prompt, 6, temperature=0.8, top_k=3, seed=1, stream=True))
    np.testing.assert_array_equal(np.stack(streamed, 1), out[:, 3:])
    assert model.training and model.rnn.training
    greedy = model.generate(prompt, 1, temperature=0)
    np.testing.assert_array_equal(greedy[:, -1], model.eval()(prompt).logits[:, -1].argmax(-1))
    np.testing.assert_array_equal(greedy, model.generate(prompt, 1, top_k=1))
    assert model.generate(prompt, 0).shape == (2, 3)


def test_sampling_follows_the_softmax(rng: np.random.Generator) -> None:
    """20,000 draws: each frequency within 6 standard deviations of its probability."""
    from seqkern.models._sampling import sample

    logits = np.array([0.0, 1.0, -1.0, 2.0])
    draws = sample(np.tile(logits, (20_000, 1)), temperature=2.0, top_k=3, rng=rng)
    weights = np.exp(logits / 2.0) * (logits > -1)
    p = weights / weights.sum()
    frequency = np.bincount(draws, minlength=4) / 20_000
    assert (np.abs(frequency - p) <= 6 * np.sqrt(p * (1 - p) / 20_000)).all()


def test_rnnlm_bad_arguments(rng: np.random.Generator) -> None:
    model = make_lm(rng)
    ids, _ = random_window(rng)
    with pytest.raises(ValueError, match=r"ids must be \[N, S\], got \[5\]"):
        model(ids[0])
    with pytest.raises(TypeError, match="ids must be an array, got list"):
        model(ids.tolist())
    with pytest.raises(ValueError, match=r"targets must be \[N, S\]"):
        model.loss_and_grads(ids, ids[0])
    with pytest.raises(ValueError, match="cell must be one of"):
        make_lm(rng, cell="elman")
    with pytest.raises(ValueError, match="at least one token"):
        model.generate(ids[:, :0], 3)
    cases: list[dict[str, Any]] = [{"temperature": -1}, {"top_k": 0}, {"max_new_tokens": -1}]
    for bad in cases:
        with pytest.raises(ValueError, match=next(iter(bad))):
            model.generate(ids, **({"max_new_tokens": 1} | bad))
    with pytest.raises(ValueError, match="got 3 items"):
        model.vjp(ids)[1]((None, None, None))


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load(dtype: Any, tied: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    config = models.RNNLMConfig(
        VOCAB, embedding_size=8, hidden_size=8, cell="gru", tie_weights=tied
    )
    model = models.RNNLM(config, dtype=dtype, rng=rng)
    model.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    for path, given in (("model", None), ("model/model.safetensors", config)):
        loaded = models.RNNLM.from_pretrained(tmp_path / path, config=given)
        assert not loaded.training and loaded.config == config
        assert list(loaded.state_dict()) == list(model.state_dict())
        for name, value in model.state_dict().items():
            assert loaded.state_dict()[name].dtype == dtype
            np.testing.assert_array_equal(loaded.state_dict()[name], value)


def test_damaged_folders_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    make_lm(rng).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config= is needed"):
        models.RNNLM.from_pretrained(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        models.RNNLM.from_pretrained(tmp_path / "nowhere", models.RNNLMConfig(VOCAB))
    config = json.loads((tmp_path / "config.json").read_text())
    for text, message in (
        ("{", "is not JSON"),
        ("[1]", "must hold a JSON object"),
        (json.dumps(config | {"heads": 3}), r"unknown keys \['heads'\]"),
        ("{}", "vocab_size"),
        (json.dumps(config | {"hidden_size": 9}), "'rnn.weight_ih_l0' must be"),
        (json.dumps(config | {"cell": "elman"}), "cell must be one of"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            models.RNNLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole = (tmp_path / "model.safetensors").read_bytes()
    for damaged in (b"", whole[:100], b"\xff" * 64, whole[:-1]):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            models.RNNLM.from_pretrained(tmp_path)


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seqkern.models import _files

    target = tmp_path / "file"
    _files.write_atomically(target, b"good")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        _files.write_atomically(target, b"bad")
    assert target.read_bytes() == b"good"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# --- SequenceModel ----------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("task", ["many_to_one", "many_to_many", "one_to_many"])
@pytest.mark.parametrize("ids", [False, True], ids=["values", "ids"])
def test_sequence_model_gradients_by_central_differences(
    cell: str, task: str, ids: bool, rng: np.random.Generator
) -> None:
    config = models.SequenceModelConfig(
        4, 3, 5, num_layers=2, cell=cell, bidirectional=True, task=task, vocab_size=9 * ids
    )
    model = models.SequenceModel(config, dtype=np.float64, rng=rng)
    one = task == "one_to_many"
    shape: tuple[int, ...] = (2,) if one else (2, 6)
    x = rng.integers(0, 9, shape) if ids else rng.standard_normal((*shape, 4))
    call: dict[str, Any] = {"steps": 6} if one else {"lengths": np.array([6, 2])}
    h = rng.standard_normal((4, 2, 5))
    hx = (h, rng.standard_normal(h.shape)) if cell == "lstm" else h

    output, pullback = model.vjp(x, hx, **call)
    expected_shape = (2, 3) if task == "many_to_one" else (2, 6, 3)
    assert output.logits.shape == expected_shape
    np.testing.assert_array_equal(output.logits, model(x, hx, **call).logits)
    if one:
        np.testing.assert_array_equal(output.logits, model.generate(x, 6, hx))
    dlogits, dh = rng.standard_normal(output.logits.shape), rng.standard_normal(h.shape)
    dx, dhx = pullback((dlogits, (dh, None) if cell == "lstm" else dh))
    dh0 = dhx[0] if cell == "lstm" else dhx

    def value() -> float:
        logits, final = model(x, hx, **call)
        final_h = final[0] if cell == "lstm" else final
        return float(np.vdot(dlogits, logits) + np.vdot(dh, final_h))

    arrays = {name: (p.data, p.grad) for name, p in model.named_parameters()} | {"h0": (h, dh0)}
    if ids:
        assert dx is None
    else:
        arrays["x"] = (x, dx)
    for name, (array, grad) in arrays.items():
        step = 1e-6 * rng.standard_normal(array.shape)
        array += step
        plus = value()
        array -= 2 * step
        minus = value()
        array += step
        assert np.vdot(grad, step) == pytest.approx((plus - minus) / 2, rel=1e-5), name


@pytest.mark.parametrize("task", ["many_to_one", "many_to_many"])
def test_sequence_model_with_convolutions_in_front(task: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """CNN + LSTM over frames: equal to the front by hand, gradients by central differences, files."""

    def front(dtype: Any = np.float64) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, dtype=dtype, rng=rng), nn.ReLU(), nn.MaxPool2d(2))

    config = models.SequenceModelConfig(2 * 2 * 3, 3, 5, task=task)
    model = models.SequenceModel(config, front(), dtype=np.float64, rng=rng)
    x = rng.standard_normal((2, 4, 1, 4, 6))
    output, pullback = model.vjp(x, lengths=np.array([4, 2]))
    alone = models.SequenceModel(config, dtype=np.float64, rng=rng)
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("front.")})
    features = np.stack([model.front(frames).reshape(4, -1) for frames in x])  # type: ignore[misc]
    assert_close(output.logits, alone(features, lengths=np.array([4, 2])).logits)
    dlogits = rng.standard_normal(output.logits.shape)
    dx, _ = pullback(dlogits)
    arrays = {name: (p.data, p.grad) for name, p in model.named_parameters()} | {"x": (x, dx)}
    for name, (array, grad) in arrays.items():
        step = 1e-7 * rng.standard_normal(array.shape)
        array += step
        above = float(np.vdot(dlogits, model(x, lengths=np.array([4, 2])).logits))
        array -= 2 * step
        below = float(np.vdot(dlogits, model(x, lengths=np.array([4, 2])).logits))
        array += step
        assert np.vdot(grad, step) == pytest.approx((above - below) / 2, rel=1e-4, abs=1e-12), name
    model.save_pretrained(tmp_path)
    loaded = models.SequenceModel.from_pretrained(tmp_path, front=front())
    assert_close(loaded(x).logits, model(x).logits)
    with pytest.raises(ValueError, match=r"front must give input_size = 12 features per step, got \[8, 2, 2, 2\]"):
        model(x[..., :4])
    with pytest.raises(ValueError, match=r"x must be \[N, S, ...\], got \[2, 4\]"):
        model(x[:, :, 0, 0, 0])
    with pytest.raises(ValueError, match="front needs a task from sequences of values"):
        models.SequenceModel(models.SequenceModelConfig(4, 3, 5, vocab_size=9), front())


def test_sequence_model_rows_stop_at_their_length(rng: np.random.Generator) -> None:
    config = models.SequenceModelConfig(4, 3, 5, bidirectional=True)
    model = models.SequenceModel(config, dtype=np.float64, rng=rng)
    x = rng.standard_normal((2, 6, 4))
    both = model(x, lengths=np.array([6, 2])).logits
    assert_close(both[0], model(x[:1]).logits[0])
    assert_close(both[1], model(x[1:, :2]).logits[0])


def test_sequence_model_files_and_errors(tmp_path: Path, rng: np.random.Generator) -> None:
    config = models.SequenceModelConfig(4, 3, 5, task="one_to_many", dropout=0.1)
    model = models.SequenceModel(config, rng=rng)
    model.save_pretrained(tmp_path)
    loaded = models.SequenceModel.from_pretrained(tmp_path)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(loaded.generate(x, 4), model.eval().generate(x, 4))
    with pytest.raises(ValueError, match=r"x must be \[N, I\], got \[4\]"):
        model(x[0], steps=3)
    with pytest.raises(TypeError, match="steps must be an integer"):
        model(x)
    with pytest.raises(ValueError, match="task must be one of"):
        models.SequenceModel(dataclasses.replace(config, task="many"))
    with pytest.raises(ValueError, match="steps is for one_to_many"):
        models.SequenceModel(models.SequenceModelConfig(4, 3, 5))(x[None], steps=3)


# --- plots ------------------------------------------------------------------------------------


def test_loss_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves = {"training": ([0, 1, 2], [3.0, 2.0, 1.0]), "held out": ([2], [1.5])}
    for name in ("curve.png", "curve.svg"):
        plot.loss_curves(curves, tmp_path / name, title="t", log_scale=True)
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(ValueError, match="one length, got 1 and 2"):
        plot.loss_curves({"a": ([1], [1, 2])}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="curves must hold at least one"):
        plot.loss_curves({}, tmp_path / "x.png")
    plot.loss_curves(curves, tmp_path / "norms.png", gradient_norms=([0, 1, 2], [9.0, 1.0, 0.1]))
    assert (tmp_path / "norms.png").read_bytes() != (tmp_path / "curve.png").read_bytes()
    with pytest.raises(ValueError, match="gradient_norms must hold x and y of one length, got 1 and 2"):
        plot.loss_curves(curves, tmp_path / "x.png", gradient_norms=([1], [1, 2]))


def test_attention_map(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    tokens: dict[str, Any] = {"rows": ["le", "chat"], "columns": ["the", "black", "cat"]}
    plot.attention_map(np.eye(2, 3), tmp_path / "map.png", title="t", **tokens)
    assert (tmp_path / "map.png").stat().st_size > 1000
    plot.attention_map(np.stack([np.eye(2, 3)] * 3), tmp_path / "heads.png", title="t", **tokens)
    assert (tmp_path / "heads.png").stat().st_size > (tmp_path / "map.png").stat().st_size
    for bad, shape in ((np.eye(3, 2), r"\[3, 2\]"), (np.ones((0, 2, 3)), r"\[0, 2, 3\]"), (np.ones(3), r"\[3\]")):
        with pytest.raises(ValueError, match=rf"weights must be \[2, 3\] for these tokens, .* got {shape}"):
            plot.attention_map(bad, tmp_path / "x.png", **tokens)


def test_loss_curves_without_matplotlib_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match="pip install 'seqkern\\[examples\\]'"):
        plot.loss_curves({"a": ([1], [1])}, tmp_path / "x.png")
