"""Parameters, modules, containers and the simple layers."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import seqkern
from ml_dtypes import bfloat16
from seqkern import nn


def make_model() -> Any:
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2, bias=False))


def test_names_and_order_are_torchs() -> None:
    lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2)
    one = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"]
    suffixes = ["l0", "l0_reverse", "l1", "l1_reverse"]
    expected = [f"{name}_{suffix}" for suffix in suffixes for name in one]
    assert [name for name, _ in lstm.named_parameters()] == expected
    assert [name for name, _ in make_model().named_parameters()] == [
        "0.weight",
        "0.bias",
        "2.weight",
    ]
    layers = nn.ModuleList([nn.Linear(2, 2), nn.GRU(2, 2)])
    assert len(layers) == 2 and layers[1] is list(layers)[1]
    assert next(iter(layers[1].state_dict())) == "weight_ih_l0"
    assert "1.weight_ih_l0" in layers.state_dict()


def test_shared_parameter_comes_once_but_keeps_both_names() -> None:
    model = make_model()
    model[2].weight = model[0].weight
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert len(list(model.parameters())) == 2
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight"]


def test_train_and_eval_reach_every_module() -> None:
    model = make_model()
    assert model.training and model[1].training
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    model.train()
    assert all(module.training for module in model.modules())


def test_zero_grad_clears() -> None:
    model = make_model().eval()
    y, pullback = model.vjp(np.ones((2, 4), np.float32))
    pullback(np.ones_like(y))
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_gradients_are_added() -> None:
    linear: Any = nn.Linear(4, 3)
    x = np.ones((2, 4), np.float32)
    for uses in (1, 2, 3):
        y, pullback = linear.vjp(x)
        pullback(np.ones_like(y))
        np.testing.assert_array_equal(linear.weight.grad, np.full((3, 4), 2 * uses))
        np.testing.assert_array_equal(linear.bias.grad, np.full(3, 2 * uses))


def test_replaced_parameter_is_used(rng: np.random.Generator) -> None:
    """Also where a module keeps its parameters in a tuple for speed."""
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    gru = nn.GRU(4, 5)
    before, _ = gru(x)
    gru.weight_ih_l0 = nn.Parameter(np.zeros((15, 4), np.float32))
    assert np.abs(gru(x)[0] - before).max() > 0
    gru.weight_ih_l0.data = rng.standard_normal((15, 4)).astype(np.float32)
    after, _ = gru(x)
    gru.weight_ih_l0.data *= 2  # in place: packed copies must follow
    assert np.abs(gru(x)[0] - after).max() > 0
    with pytest.raises(TypeError, match=r"GRU\.weight_ih_l0 must be a Parameter"):
        gru.weight_ih_l0 = np.zeros((15, 4))


def test_copies_and_pickles_are_independent(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    lstm: Any = nn.LSTM(4, 5)
    expected, _ = lstm(x)
    for clone in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        np.testing.assert_array_equal(clone(x)[0], expected)
        clone.weight_hh_l0.data[...] = 0
        clone.weight_ih_l0.data[...] = 0
        assert np.abs(clone(x)[0] - expected).max() > 0
        np.testing.assert_array_equal(lstm(x)[0], expected)


# --- state_dict -------------------------------------------------------------------------------


def test_state_dict_round_trip() -> None:
    first, second = make_model(), make_model()
    result = second.load_state_dict(first.state_dict())
    assert result == ([], [])
    for (name, p), (_, q) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data, err_msg=name)
        assert not np.shares_memory(p.data, q.data)


def test_values_are_cast_to_the_parameters_dtype() -> None:
    linear: Any = nn.Linear(2, 2)
    state = {"weight": np.ones((2, 2)), "bias": np.ones(2, bfloat16)}
    linear.load_state_dict(state)
    assert linear.weight.dtype == linear.bias.dtype == np.float32
    assert linear.weight.data.sum() == 4 and linear.bias.data.sum() == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": None}, ValueError, r"missing key 'weight' \(expected \[3, 2\]\)"),
        ({"extra": np.zeros(1)}, ValueError, "unexpected key 'extra'"),
        ({"weight": np.zeros((2, 3))}, ValueError, r"'weight' must be \[3, 2\], got \[2, 3\]"),
        ({"weight": [[0.0]]}, TypeError, "'weight' must be a NumPy, CuPy or torch array, got list"),
        ({"weight": np.zeros((3, 2), int)}, TypeError, "'weight' must be floating point, got int"),
    ],
)
def test_load_errors_name_the_key_and_change_nothing(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    linear: Any = nn.Linear(2, 3)
    before = {name: value.copy() for name, value in linear.state_dict().items()}
    state = {"bias": np.zeros(3), "weight": np.zeros((3, 2))} | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(error, match=message):
        linear.load_state_dict(state)
    for name, value in linear.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_load_not_strict_reports_what_it_passed_over() -> None:
    linear: Any = nn.Linear(2, 3)
    result = linear.load_state_dict({"bias": np.zeros(3), "extra": np.zeros(1)}, strict=False)
    assert result.missing_keys == ["weight"] and result.unexpected_keys == ["extra"]
    assert not linear.bias.data.any()
    with pytest.raises(ValueError, match="'bias' must be"):
        linear.load_state_dict({"bias": np.zeros(2)}, strict=False)
    with pytest.raises(TypeError, match="state must be a mapping, got list"):
        linear.load_state_dict([])


@pytest.mark.torch
def test_load_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.GRU(3, 4, num_layers=2)
    ours = nn.GRU(3, 4, num_layers=2)
    ours.load_state_dict(theirs.state_dict())
    ours.load_state_dict(dict(theirs.named_parameters()))
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name], value.numpy())
    ours.load_state_dict({k: v.bfloat16() for k, v in theirs.state_dict().items()})
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name], value.bfloat16().float().numpy())


def test_to_dtype_and_device() -> None:
    model = make_model().to(np.float64)
    assert all(p.dtype == np.float64 for p in model.parameters())
    assert all(p.dtype == bfloat16 for p in model.to("bfloat16").parameters())
    assert all(p.dtype == np.float32 for p in model.to("float32").to("cpu").parameters())
    with pytest.raises(ValueError, match="to: target must be 'cpu', 'cuda' or a floating dtype"):
        model.to(np.int32)
    for target in ("tpu", None):
        with pytest.raises(TypeError, match="to: target must be"):
            model.to(target)


def test_to_cuda_without_cupy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match="needs CuPy: pip install"):
        nn.Linear(2, 2).to("cuda")


def test_sequential_refuses_what_is_no_module() -> None:
    with pytest.raises(TypeError, match="every item must be a Module, got int"):
        nn.Sequential(nn.Linear(2, 2), 3)  # type: ignore[arg-type]


# --- randomness -------------------------------------------------------------------------------


def test_manual_seed_repeats_initialisation_and_dropout() -> None:
    def draw() -> list[np.ndarray]:
        seqkern.manual_seed(5)
        model = make_model()
        return [*(p.data for p in model.parameters()), model(np.ones((8, 4), np.float32))]

    for a, b in zip(draw(), draw(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(TypeError, match="seed must be an integer, got str"):
        seqkern.manual_seed("a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be >= 0"):
        seqkern.manual_seed(-1)


def test_own_generator_leaves_the_librarys_alone() -> None:
    seqkern.manual_seed(1)
    expected = nn.Linear(3, 3).weight.data
    seqkern.manual_seed(1)
    nn.Linear(3, 3, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(nn.Linear(3, 3).weight.data, expected)


# --- simple layers ----------------------------------------------------------------------------


def test_initial_distributions(rng: np.random.Generator) -> None:
    """U(-1/sqrt(I), 1/sqrt(I)) has mean square 1/(3 I); N(0, 1) has 1. 1e5 draws: within 3 %."""
    linear: Any = nn.Linear(100, 1000, rng=rng)
    assert np.abs(linear.weight.data).max() <= 0.1
    assert np.abs(linear.bias.data).max() <= 0.1
    assert np.mean(linear.weight.data**2) == pytest.approx(1 / 300, rel=0.03)
    table = nn.Embedding(1000, 100, padding_idx=-2, rng=rng)
    assert table.padding_idx == 998 and not table.weight.data[998].any()
    assert np.mean(table.weight.data**2) == pytest.approx(1, rel=0.03)


def test_dropout_modes() -> None:
    drop, x = nn.Dropout(0.25), np.ones((100, 100), np.float32)
    y = drop(x)
    assert np.unique(y).tolist() == [0.0, np.float32(1 / 0.75)]
    # 10,000 draws at p = 0.25 have standard deviation 0.0043: six of them.
    assert abs((y == 0).mean() - 0.25) < 0.026
    assert drop.eval()(x) is x
    assert not nn.Dropout(1.0)(x).any()
    with pytest.raises(TypeError, match="input must be an array"):
        drop([1.0])
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\]"):
        nn.Dropout(-0.1)
    _, pullback = drop.vjp(x)
    with pytest.raises(ValueError, match="gradient of output must be"):
        pullback(x[1:])


def test_embedding_padding_row_gets_no_gradient() -> None:
    table = nn.Embedding(4, 2, padding_idx=1)
    y, pullback = table.vjp(np.array([[0, 1], [3, 3]]))
    assert pullback(np.ones_like(y)) == (None,)
    np.testing.assert_array_equal(table.weight.grad, [[1, 1], [0, 0], [0, 0], [2, 2]])
    for bad in (4, -5):
        with pytest.raises(ValueError, match="padding_idx must be"):
            nn.Embedding(4, 2, padding_idx=bad)


@pytest.mark.torch
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_matches_torch(reduction: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    logits, target = rng.standard_normal((4, 5, 7)), rng.integers(0, 7, (4, 5))
    target[1, 2] = target[3, 0] = 3
    options: dict[str, Any] = {
        "ignore_index": 3,
        "label_smoothing": 0.1,
        "reduction": reduction,
    }
    theirs = torch.from_numpy(logits.copy()).requires_grad_()
    expected = torch.nn.CrossEntropyLoss(**options)(theirs.movedim(-1, 1), torch.from_numpy(target))
    ours = nn.CrossEntropyLoss(**options)
    loss, pullback = ours.vjp(logits, target)
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-12)
    np.testing.assert_array_equal(loss, ours(logits, target))
    dloss = rng.standard_normal(loss.shape)
    (dlogits,) = pullback(dloss)
    expected.backward(torch.from_numpy(np.asarray(dloss)))
    np.testing.assert_allclose(dlogits, theirs.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_cross_entropy_pullback_starts_from_one() -> None:
    logits, target = np.zeros((2, 4), np.float32), np.array([0, 1])
    loss = nn.CrossEntropyLoss()
    (by_default,) = loss.vjp(logits, target)[1]()
    (by_one,) = loss.vjp(logits, target)[1](1.0)
    np.testing.assert_array_equal(by_default, by_one)
    assert by_default.dtype == np.float32
    with pytest.raises(ValueError, match="reduction must be one of"):
        nn.CrossEntropyLoss(reduction="avg")
