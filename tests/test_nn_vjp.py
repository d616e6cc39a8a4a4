"""The promises of `vjp`: no hidden state, one call per pullback, added gradients, forms taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import seqkern
from seqkern import nn

SEQ_LEN, BATCH, INPUT, HIDDEN = 5, 3, 4, 6
RECURRENT = ["RNN", "LSTM", "GRU"]


def make(name: str, rng: np.random.Generator, **options: Any) -> Any:
    return getattr(nn, name)(INPUT, HIDDEN, dtype=np.float64, rng=rng, **options)


def one_input_modules(rng: np.random.Generator) -> list[tuple[Any, np.ndarray]]:
    x = rng.standard_normal((BATCH, INPUT))
    return [
        (nn.Linear(INPUT, HIDDEN, dtype=np.float64, rng=rng), x),
        (nn.Embedding(7, HIDDEN, dtype=np.float64, rng=rng), rng.integers(0, 7, (BATCH, 2))),
        (nn.Dropout(0.5), x),
        (nn.Dropout(0.0), x),
        (nn.Softmax(), x),
        (nn.LogSoftmax(), x),
        *((module, x) for module in (nn.Identity(), nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.GELU())),
        (nn.GELU("tanh"), x),
        (nn.LayerNorm(INPUT, dtype=np.float64), x),
        (nn.RMSNorm((BATCH, INPUT), dtype=np.float64), x[None]),
        (nn.BatchNorm1d(INPUT, dtype=np.float64), x),
        (nn.BatchNorm2d(BATCH, dtype=np.float64), np.stack([x, -x])[..., None]),
        (nn.Sequential(nn.Linear(INPUT, 3, dtype=np.float64, rng=rng), nn.Softmax()), x),
    ]


def grads(module: Any) -> dict[str, np.ndarray]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_many_uses_before_the_pullbacks_in_any_order(
    name: str, order: tuple[int, ...], rng: np.random.Generator
) -> None:
    module = make(name, rng, num_layers=2, bidirectional=True)
    inputs = [rng.standard_normal((3 + k, BATCH, INPUT)) for k in range(3)]
    expected_dx, expected_grads = [], []
    for x in inputs:
        (y, _), pullback = module.vjp(x)
        expected_dx.append(pullback(np.ones_like(y))[0])
        expected_grads.append(grads(module))
        module.zero_grad()
    uses = [module.vjp(x) for x in inputs]
    module(inputs[0])
    for k in order:
        (y, _), pullback = uses[k]
        np.testing.assert_array_equal(pullback(np.ones_like(y))[0], expected_dx[k])
    for key, total in grads(module).items():
        np.testing.assert_allclose(total, sum(g[key] for g in expected_grads), atol=1e-12)


@pytest.mark.parametrize("name", RECURRENT)
def test_second_call_of_a_pullback_is_refused(name: str, rng: np.random.Generator) -> None:
    module = make(name, rng)
    (y, _), pullback = module.vjp(rng.standard_normal((SEQ_LEN, BATCH, INPUT)))
    pullback(np.ones_like(y))
    before = {key: grad.copy() for key, grad in grads(module).items()}
    with pytest.raises(RuntimeError, match="already called"):
        pullback(np.ones_like(y))
    for key, grad in grads(module).items():
        np.testing.assert_array_equal(grad, before[key])


def test_one_input_modules_return_a_tuple_and_run_once(rng: np.random.Generator) -> None:
    for module, x in one_input_modules(rng):
        seqkern.manual_seed(3)
        y, pullback = module.vjp(x)
        seqkern.manual_seed(3)
        np.testing.assert_array_equal(y, module(x))
        (dx,) = pullback(np.ones_like(y))
        assert dx is None if x.dtype.kind == "i" else dx.shape == x.shape
        with pytest.raises(RuntimeError, match="already called"):
            pullback(np.ones_like(y))


def test_none_is_a_zero_gradient(rng: np.random.Generator) -> None:
    for module, x in one_input_modules(rng):
        y, pullback = module.vjp(x)
        (dx,) = pullback(None)
        assert dx is None or not dx.any()
        assert not any(grad.any() for grad in grads(module).values())
        assert y.shape[0] == x.shape[0]


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("layers", [1, 2])
def test_forms_of_the_gradient(name: str, layers: int, rng: np.random.Generator) -> None:
    """A bare gradient is that of output; None stands for zero at every level."""
    module = make(name, rng, num_layers=layers)
    x = rng.standard_normal((SEQ_LEN, BATCH, INPUT))
    hx = rng.standard_normal((layers, BATCH, HIDDEN))
    group = (hx, hx) if name == "LSTM" else hx
    zeros = (np.zeros_like(hx),) * 2 if name == "LSTM" else np.zeros_like(hx)
    (y, _), _ = module.vjp(x, group)
    dy = rng.standard_normal(y.shape)

    def pulled(grad: Any) -> list[np.ndarray]:
        module.zero_grad()
        _, pullback = module.vjp(x, group)
        dx, dhx = pullback(grad)
        return [dx, *(dhx if isinstance(dhx, tuple) else (dhx,)), *grads(module).values()]

    def assert_same(ours: Any, theirs: Any) -> None:
        for a, b in zip(pulled(ours), pulled(theirs), strict=True):
            np.testing.assert_array_equal(a, b)

    assert_same(dy, (dy, zeros))
    assert_same((dy, None), (dy, zeros))
    assert_same((None, zeros), (np.zeros_like(dy), zeros))
    assert_same(None, (np.zeros_like(dy), zeros))
    if name == "LSTM":
        assert_same((dy, (None, None)), (dy, zeros))
        assert_same((None, (hx, None)), (None, (hx, zeros[1])))
        assert_same((None, (None, hx)), (None, (zeros[0], hx)))


def test_gradients_of_states_come_in_the_structure_of_hx(rng: np.random.Generator) -> None:
    x, h = rng.standard_normal((SEQ_LEN, BATCH, INPUT)), np.zeros((1, BATCH, HIDDEN))
    for name in ("RNN", "GRU"):
        (y, _), pullback = make(name, rng).vjp(x, h)
        _, dhx = pullback(np.ones_like(y))
        assert isinstance(dhx, np.ndarray) and dhx.shape == h.shape
    (y, _), pullback = make("LSTM", rng).vjp(x, (h, h))
    _, dhx = pullback(np.ones_like(y))
    assert type(dhx) is tuple and [g.shape for g in dhx] == [h.shape] * 2


@pytest.mark.parametrize("name", RECURRENT)
def test_dropout_between_layers(name: str, rng: np.random.Generator) -> None:
    """Training and the same seed: the same y from call and vjp; eval: no dropout; and the
    gradient is that of the masked network, by central differences."""
    module = make(name, rng, num_layers=2, dropout=0.5)
    x = rng.standard_normal((SEQ_LEN, BATCH, INPUT))

    def call(value: np.ndarray) -> np.ndarray:
        seqkern.manual_seed(11)
        return np.asarray(module(value)[0])

    seqkern.manual_seed(11)
    (y, _), pullback = module.vjp(x)
    np.testing.assert_array_equal(y, call(x))
    assert np.abs(y - module(x)[0]).max() > 0  # the next draw gives another mask
    dy, direction, eps = rng.standard_normal(y.shape), rng.standard_normal(x.shape), 1e-6
    slope = np.vdot(dy, call(x + eps * direction) - call(x - eps * direction)) / (2 * eps)
    assert np.vdot(pullback(dy)[0], direction) == pytest.approx(slope, rel=1e-6)
    module.eval()
    np.testing.assert_array_equal(module(x)[0], module(x)[0])


def test_peephole_gradient_by_central_differences(rng: np.random.Generator) -> None:
    module = make("LSTM", rng, num_layers=2, bidirectional=True, peephole=True)
    names = [name for name, _ in module.named_parameters() if "peephole" in name]
    assert names[:2] == ["weight_peephole_l0", "weight_peephole_l0_reverse"]
    x = rng.standard_normal((SEQ_LEN, BATCH, INPUT))
    (y, _), pullback = module.vjp(x)
    dy, eps = rng.standard_normal(y.shape), 1e-6
    pullback(dy)
    for name in names:
        weight = getattr(module, name)
        direction = rng.standard_normal(weight.shape)
        plus, minus = weight.data + eps * direction, weight.data - eps * direction
        original, ends = weight.data, []
        for weight.data in (plus, minus):
            ends.append(module(x)[0])
        weight.data = original
        slope = np.vdot(dy, ends[0] - ends[1]) / (2 * eps)
        assert np.vdot(weight.grad, direction) == pytest.approx(slope, rel=1e-6)


def test_reset_before_differs_and_reaches_the_op(rng: np.random.Generator) -> None:
    x = rng.standard_normal((SEQ_LEN, BATCH, INPUT))
    after = make("GRU", rng)
    before = make("GRU", rng, reset_after=False)
    before.load_state_dict(after.state_dict())
    weights = [p.data for p in before.parameters()]
    expected, _ = seqkern.reference.gru(x, *weights, reset_after=False)
    np.testing.assert_allclose(before(x)[0], expected, atol=1e-12)
    assert np.abs(before(x)[0] - after(x)[0]).max() > 1e-3


@pytest.mark.parametrize("name", RECURRENT)
def test_streaming_passes_the_state_on(name: str, rng: np.random.Generator) -> None:
    module = make(name, rng, num_layers=2)
    x = rng.standard_normal((SEQ_LEN, BATCH, INPUT))
    whole, final = module(x)
    state, parts = None, []
    for t in range(SEQ_LEN):
        y, state = module(x[t : t + 1], state)
        parts.append(y)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(np.asarray(state), np.asarray(final))


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("shape", [(0, BATCH, INPUT), (SEQ_LEN, 0, INPUT)])
def test_empty_sequences_and_batches(
    name: str, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    module = make(name, rng, num_layers=2, bidirectional=True)
    (y, _), pullback = module.vjp(np.zeros(shape))
    assert y.shape == (*shape[:2], 2 * HIDDEN)
    assert pullback(np.zeros_like(y))[0].shape == shape
    assert not any(grad.any() for grad in grads(module).values())


def test_biases_do_not_share_one_gradient_array(rng: np.random.Generator) -> None:
    for name in RECURRENT:
        module = make(name, rng)
        (y, _), pullback = module.vjp(rng.standard_normal((SEQ_LEN, BATCH, INPUT)))
        pullback(np.ones_like(y))
        assert not np.shares_memory(module.bias_ih_l0.grad, module.bias_hh_l0.grad)


@pytest.mark.parametrize("batch", [(), (BATCH,)], ids=["unbatched", "batched"])
@pytest.mark.parametrize("name", RECURRENT)
def test_cells_take_the_same_forms(
    name: str, batch: tuple[int, ...], rng: np.random.Generator
) -> None:
    cell = make(f"{name}Cell", rng)
    x, h = rng.standard_normal((*batch, INPUT)), rng.standard_normal((*batch, HIDDEN))
    hx, zeros = ((h, h), (h * 0, h * 0)) if name == "LSTM" else (h, h * 0)

    def pulled(grad: Any) -> list[np.ndarray]:
        cell.zero_grad()
        dx, dhx = cell.vjp(x, hx)[1](grad)
        return [dx, *(dhx if isinstance(dhx, tuple) else (dhx,)), *grads(cell).values()]

    forms: list[tuple[Any, Any]] = [(None, zeros)]
    if name == "LSTM":
        forms += [(h, (h, h * 0)), ((h, None), (h, h * 0)), ((None, h), (h * 0, h))]
    for ours, theirs in forms:
        for a, b in zip(pulled(ours), pulled(theirs), strict=True):
            np.testing.assert_array_equal(a, b)
    _, pullback = cell.vjp(x, hx)
    with pytest.raises(ValueError, match="gradient of the state must be"):
        pullback(h[..., 1:])
    pullback(h)
    with pytest.raises(RuntimeError, match="already called"):
        pullback(h)


# --- bad arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("layers", [1, 2])
def test_bad_calls_name_the_argument(name: str, layers: int, rng: np.random.Generator) -> None:
    module = make(name, rng, num_layers=layers)
    x = rng.standard_normal((SEQ_LEN, BATCH, INPUT))

    def group(h: Any) -> Any:
        return (h, h) if name == "LSTM" else h

    for call in (module, module.vjp):
        with pytest.raises(TypeError, match="input must be an array, got list"):
            call(x.tolist())
        with pytest.raises(ValueError, match=r"input must be \[T, N, I\]"):
            call(x[0, 0])
        with pytest.raises(ValueError, match=rf"hx.* = \[{layers}, 3, 6\], got \[3, 3, 6\]"):
            call(x, group(np.zeros((3, BATCH, HIDDEN))))
        with pytest.raises(ValueError, match=r"hx.*, got \[3, 6\]"):
            call(x, group(np.zeros((BATCH, HIDDEN))))
        with pytest.raises(TypeError, match="hx"):
            call(x, group([[0.0]]))
        with pytest.raises(ValueError, match=rf"hx.* = \[{layers}, 6\], got"):
            call(x[:, 0], group(np.zeros((layers, BATCH, HIDDEN))))
    if name == "LSTM":
        h = np.zeros((layers, BATCH, HIDDEN))
        for bad in (h, [h, h], (h,), (h, h, h), (h, None)):
            with pytest.raises(TypeError, match="hx"):
                module(x, bad)


@pytest.mark.parametrize("name", RECURRENT)
def test_bad_calls_of_cells(name: str, rng: np.random.Generator) -> None:
    cell = make(f"{name}Cell", rng)
    x, h = np.zeros((BATCH, INPUT)), np.zeros((BATCH, HIDDEN))

    def group(state: Any) -> Any:
        return (state, state) if name == "LSTM" else state

    for call in (cell, cell.vjp):
        with pytest.raises(TypeError, match="input must be an array, got list"):
            call(x.tolist())
        with pytest.raises(ValueError, match=r"input must be \[N, I\] or \[I\]"):
            call(x[None])
        with pytest.raises(ValueError, match=r"hx must be \[6\], got \[3, 6\]"):
            call(x[0], group(h))
        with pytest.raises(ValueError, match="must be"):
            call(x, group(h[1:]))
        with pytest.raises(TypeError, match="must be"):
            call(x, group([[0.0]]))
        if name == "LSTM":
            with pytest.raises(TypeError, match="tuple"):
                call(x, h)


@pytest.mark.parametrize("name", RECURRENT)
def test_bad_gradients_change_nothing_and_do_not_use_up_the_pullback(
    name: str, rng: np.random.Generator
) -> None:
    module = make(name, rng)
    (y, _), pullback = module.vjp(rng.standard_normal((SEQ_LEN, BATCH, INPUT)))
    with pytest.raises(ValueError, match="gradient of output must be"):
        pullback(y[1:])
    with pytest.raises(TypeError, match="gradient of output must be an array"):
        pullback([y, None])
    with pytest.raises(ValueError, match="got 3 items"):
        pullback((y, None, None))
    assert not grads(module)
    pullback(y)
    assert grads(module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_layers": 1.5}, "num_layers must be an integer"),
        ({"dropout": 1.5}, r"dropout must lie in \[0, 1\]"),
        ({"proj_size": HIDDEN}, "proj_size must be smaller"),
        ({"precision": "low"}, "precision must be one of"),
        ({"dtype": np.int32}, "dtype must be floating point"),
        ({"rng": 3}, "rng must be a numpy.random.Generator"),
    ],
)
def test_bad_constructor_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        nn.LSTM(INPUT, HIDDEN, **options)
