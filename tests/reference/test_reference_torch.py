"""torch as a second, independent oracle, in float64 on random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SEQ_LEN, BATCH, INPUT, HIDDEN = 5, 4, 3, 4
LENGTHS = np.array([3, 5, 1, 4])
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def tensor(array: Any) -> Any:
    """A leaf that collects its gradient; a copy, so that updates in place stay apart."""
    return torch.tensor(array, requires_grad=bool(np.issubdtype(array.dtype, np.floating)))


def assert_close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected.detach().numpy(), **CLOSE)


RECURRENT = [
    pytest.param("rnn", {}, id="rnn-tanh"),
    pytest.param("rnn", {"nonlinearity": "relu"}, id="rnn-relu"),
    pytest.param("gru", {}, id="gru"),
    pytest.param("lstm", {}, id="lstm"),
    pytest.param("lstm", {"proj_size": 2}, id="lstm-projection"),
    pytest.param("gru", {"bias": False}, id="gru-no-bias"),
]


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("initial", [True, False], ids=["given", "zero"])
@pytest.mark.parametrize(("op", "options"), RECURRENT)
def test_both_directions_of_a_layer(
    op: str, options: Any, initial: bool, lengths: Any, rng: Any
) -> None:
    """torch's bidirectional layer against one call per direction, with all gradients."""
    module = getattr(torch.nn, op.upper())(
        INPUT, HIDDEN, bidirectional=True, dtype=torch.float64, **options
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape))))
    state_size = options.get("proj_size", HIDDEN)
    x = rng.standard_normal((SEQ_LEN, BATCH, INPUT))
    sizes = [state_size, HIDDEN] if op == "lstm" else [state_size]
    states = [rng.standard_normal((2, BATCH, size)) for size in sizes] if initial else []
    dstates = [rng.standard_normal((2, BATCH, size)) for size in sizes]
    dy = rng.standard_normal((SEQ_LEN, BATCH, 2 * state_size))

    tx, tstates = tensor(x), [tensor(state) for state in states]
    hx = (tuple(tstates) if op == "lstm" else tstates[0]) if initial else None
    packed = tx
    if lengths is not None:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            tx, torch.from_numpy(lengths), enforce_sorted=False
        )
    ty, tfinal = module(packed, hx)
    if lengths is not None:
        ty, _ = torch.nn.utils.rnn.pad_packed_sequence(ty, total_length=SEQ_LEN)
    tfinal = tfinal if op == "lstm" else (tfinal,)
    outputs = zip((ty, *tfinal), (dy, *dstates), strict=True)
    sum((output * torch.from_numpy(d)).sum() for output, d in outputs).backward()

    dx = np.zeros_like(x)
    for d, suffix in enumerate(("", "_reverse")):
        named = {name: getattr(module, f"{name}_l0{suffix}", None) for name in PARAMETERS}
        arguments = {n: p.detach().numpy() for n, p in named.items() if p is not None}
        arguments |= {name: s[d] for name, s in zip(("h0", "c0"), states, strict=False)}
        arguments |= {"nonlinearity": options["nonlinearity"]} if "nonlinearity" in options else {}
        y, final, saved = getattr(reference, f"{op}_forward")(
            x, **arguments, lengths=lengths, reverse=d == 1
        )
        own = slice(d * state_size, (d + 1) * state_size)
        assert_close(y, ty[..., own])
        for state, expected in zip(final if op == "lstm" else (final,), tfinal, strict=True):
            assert_close(state, expected[d])
        dfinal = tuple(dstate[d] for dstate in dstates)
        gradients = getattr(reference, f"{op}_backward")(
            dy[..., own], dfinal if op == "lstm" else dfinal[0], saved
        )
        dx += gradients.dx
        for name, parameter in named.items():
            if parameter is not None:
                assert_close(getattr(gradients, f"d{name}"), parameter.grad)
        for name, state in zip(("dh0", "dc0"), tstates, strict=False):
            assert_close(getattr(gradients, name), state.grad[d])
    assert_close(dx, tx.grad)


@pytest.mark.parametrize("op", ["rnn", "lstm", "gru"])
def test_cells(op: str, rng: Any) -> None:
    module = getattr(torch.nn, f"{op.upper()}Cell")(INPUT, HIDDEN, dtype=torch.float64)
    x, h, c = (rng.standard_normal((BATCH, size)) for size in (INPUT, HIDDEN, HIDDEN))
    tx, th, tc = tensor(x), tensor(h), tensor(c)
    state, tstate = ((h, c), (th, tc)) if op == "lstm" else (h, th)
    arguments = {n: getattr(module, n).detach().numpy() for n in PARAMETERS[:4]}
    *news, saved = getattr(reference, f"{op}_cell_forward")(x, state, **arguments)
    tnew = module(tx, tstate)
    tnews = tnew if op == "lstm" else (tnew,)
    for a, b in zip(news, tnews, strict=True):
        assert_close(a, b)
    sum((b * torch.from_numpy(a)).sum() for a, b in zip(news, tnews, strict=True)).backward()
    gradients = getattr(reference, f"{op}_cell_backward")(*news, saved)
    assert_close(gradients.dx, tx.grad)
    assert_close(gradients.dh, th.grad)
    if op == "lstm":
        assert_close(gradients.dc, tc.grad)
    for name in PARAMETERS[:4]:
        assert_close(getattr(gradients, f"d{name}"), getattr(module, name).grad)


FUNCTIONS = [
    pytest.param("linear", [(2, 5, 3), (4, 3), (4,)], {}, id="linear"),
    pytest.param("linear", [(5, 3), (4, 3)], {}, id="linear-no-bias"),
    pytest.param("softmax", [(3, 4, 2)], {"dim": 1}, id="softmax"),
    pytest.param("log_softmax", [(3, 4, 2)], {"dim": -1}, id="log_softmax"),
    pytest.param("relu", [(3, 4)], {}, id="relu"),
    pytest.param("silu", [(3, 4)], {}, id="silu"),
    pytest.param("gelu", [(3, 4)], {}, id="gelu"),
    pytest.param("gelu", [(3, 4)], {"approximate": "tanh"}, id="gelu-tanh"),
]


@pytest.mark.parametrize(("op", "shapes", "options"), FUNCTIONS)
def test_functions(op: str, shapes: Any, options: Any, rng: Any) -> None:
    arrays = [rng.standard_normal(shape) * 2 for shape in shapes]
    tensors = [tensor(array) for array in arrays]
    y, saved = getattr(reference, f"{op}_forward")(*arrays, **options)
    expected = getattr(torch.nn.functional, op)(*tensors, **options)
    assert_close(y, expected)
    dy = rng.standard_normal(y.shape)
    expected.backward(torch.from_numpy(dy))
    gradients = getattr(reference, f"{op}_backward")(dy, saved)
    for gradient, leaf in zip(gradients, tensors, strict=False):
        assert_close(gradient, leaf.grad)


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_norms(op: str, rng: Any) -> None:
    shapes = [(2, 3, 4), (3, 4), (3, 4)][: 3 if op == "layer_norm" else 2]
    x, *parameters = (rng.standard_normal(shape) for shape in shapes)
    tx, *tparameters = (tensor(array) for array in (x, *parameters))
    y, saved = getattr(reference, f"{op}_forward")(x, (3, 4), *parameters)
    expected = getattr(torch.nn.functional, op)(tx, (3, 4), *tparameters)
    assert_close(y, expected)
    dy = rng.standard_normal(y.shape)
    expected.backward(torch.from_numpy(dy))
    gradients = getattr(reference, f"{op}_backward")(dy, saved)
    for gradient, leaf in zip(gradients, (tx, *tparameters), strict=True):
        assert_close(gradient, leaf.grad)


@pytest.mark.parametrize("padding_idx", [None, 1, -1])
def test_embedding(padding_idx: int | None, rng: Any) -> None:
    weight, ids = rng.standard_normal((5, 3)), rng.integers(0, 5, (4, 6))
    leaf = tensor(weight)
    y, saved = reference.embedding_forward(ids, weight, padding_idx=padding_idx)
    expected = torch.nn.functional.embedding(torch.from_numpy(ids), leaf, padding_idx=padding_idx)
    assert_close(y, expected)
    dy = rng.standard_normal(y.shape)
    expected.backward(torch.from_numpy(dy))
    assert_close(reference.embedding_backward(dy, saved).dweight, leaf.grad)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
def test_cross_entropy(ignored: str, label_smoothing: float, reduction: str, rng: Any) -> None:
    logits, target = rng.standard_normal((6, 5)) * 3, rng.integers(0, 4, 6)
    if ignored == "some":
        target[[1, 4]] = 4
    elif ignored == "all":
        target[:] = 4
    options: Any = {"ignore_index": 4, "label_smoothing": label_smoothing, "reduction": reduction}
    leaf = tensor(logits)
    loss, saved = reference.cross_entropy_forward(logits, target, **options)
    expected = torch.nn.functional.cross_entropy(leaf, torch.from_numpy(target), **options)
    assert_close(loss, expected)
    dloss = np.asarray(rng.standard_normal(loss.shape))
    expected.backward(torch.from_numpy(dloss))
    assert_close(reference.cross_entropy_backward(dloss, saved).dlogits, leaf.grad)


SGD = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
]


def follow(optimizer: Any, leaf: Any, param: Any, rng: Any, update: Any) -> None:
    """Five steps on random gradients, torch and the reference side by side."""
    for step in range(1, 6):
        grad = rng.standard_normal(param.shape)
        leaf.grad = torch.from_numpy(grad.copy())
        optimizer.step()
        update(param, grad, step)
        assert_close(param, leaf)


@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd(options: Any, rng: Any) -> None:
    param = rng.standard_normal((3, 4))
    leaf, buffers = tensor(param), [None]

    def update(param: Any, grad: Any, step: int) -> None:
        buffers[0] = reference.sgd_update(param, grad, buffers[0], lr=0.1, **options)

    follow(torch.optim.SGD([leaf], lr=0.1, **options), leaf, param, rng, update)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adagrad(weight_decay: float, rng: Any) -> None:
    param = rng.standard_normal((3, 4))
    leaf, total = tensor(param), np.zeros_like(param)

    def update(param: Any, grad: Any, step: int) -> None:
        reference.adagrad_update(param, grad, total, lr=0.1, weight_decay=weight_decay)

    optimizer = torch.optim.Adagrad([leaf], lr=0.1, weight_decay=weight_decay)
    follow(optimizer, leaf, param, rng, update)


def test_adamw(rng: Any) -> None:
    param = rng.standard_normal((3, 4))
    leaf, moments = tensor(param), [np.zeros_like(param), np.zeros_like(param)]
    common: Any = {"lr": 0.01, "eps": 1e-6, "weight_decay": 0.1}

    def update(param: Any, grad: Any, step: int) -> None:
        reference.adamw_update(param, grad, *moments, step=step, beta1=0.8, beta2=0.95, **common)

    optimizer = torch.optim.AdamW([leaf], betas=(0.8, 0.95), **common)
    follow(optimizer, leaf, param, rng, update)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clipping(max_norm: float, norm_type: float, rng: Any) -> None:
    gradients = [rng.standard_normal((3, 4)), rng.standard_normal(5)]
    leaves = [tensor(gradient) for gradient in gradients]
    for leaf, gradient in zip(leaves, gradients, strict=True):
        leaf.grad = torch.from_numpy(gradient.copy())
    expected = torch.nn.utils.clip_grad_norm_(leaves, max_norm, norm_type)
    assert_close(reference.clip_grad_norm_(gradients, max_norm, norm_type), expected)
    torch.nn.utils.clip_grad_value_(leaves, 0.1)
    reference.clip_grad_value_(gradients, 0.1)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert_close(gradient, leaf.grad)
