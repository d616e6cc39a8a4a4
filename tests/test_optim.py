"""Optimisers and clipping against torch, schedules against their formulas, exact resumption."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from seqkern import nn, optim

STEPS = 20
OPTIMISERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_decay": ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    "sgd_momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "sgd_nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adagrad": ("Adagrad", {"lr": 0.1}),
    "adagrad_all": (
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5},
    ),
    "adamw": ("AdamW", {}),
    "adamw_all": (
        "AdamW",
        {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    ),
}


def make(name: str, parameters: Any) -> Any:
    kind, options = OPTIMISERS[name]
    return getattr(optim, kind)(parameters, **options)


def make_parameters(rng: np.random.Generator, dtype: Any = np.float64) -> list[Any]:
    return [nn.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in ((3, 5), (7,))]


@pytest.mark.torch
@pytest.mark.parametrize("name", OPTIMISERS)
def test_matches_torch(name: str, rng: np.random.Generator) -> None:
    """In float64; the second parameter has no gradient every third step and is then left alone."""
    torch = pytest.importorskip("torch")
    ours = make_parameters(rng)
    theirs = [torch.from_numpy(p.data.copy()).requires_grad_() for p in ours]
    kind, options = OPTIMISERS[name]
    our_optimizer, their_optimizer = make(name, ours), getattr(torch.optim, kind)(theirs, **options)
    for step in range(STEPS):
        for k, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            grad = rng.standard_normal(p.shape)
            missing = k == 1 and step % 3 == 2
            p.grad, q.grad = (None, None) if missing else (grad, torch.from_numpy(grad.copy()))
        our_optimizer.step()
        their_optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_state_resumes_to_the_bit(name: str, rng: np.random.Generator) -> None:
    grads = [[rng.standard_normal(s).astype(np.float32) for s in ((3, 5), (7,))] for _ in range(6)]

    def advance(parameters: list[nn.Parameter], optimizer: Any, steps: range) -> None:
        for k in steps:
            for p, grad in zip(parameters, grads[k], strict=True):
                p.grad = grad.copy()
            optimizer.step()

    whole = make_parameters(rng, np.float32)
    halves = [nn.Parameter(p.data.copy()) for p in whole]
    advance(whole, make(name, whole), range(6))
    first = make(name, halves)
    first.lr = first.lr * 1  # lr is a plain attribute and part of the state
    advance(halves, first, range(3))
    state = {key: value.copy() for key, value in first.state_dict().items()}
    second = make(name, halves)
    second.lr = 123.0
    second.load_state_dict(state)
    advance(halves, second, range(3, 6))
    for p, q in zip(whole, halves, strict=True):
        np.testing.assert_array_equal(p.data, q.data)


def test_state_is_a_copy_under_the_parameters_names() -> None:
    linear = nn.Linear(2, 3)
    optimizer = optim.AdamW(linear.named_parameters())
    linear.weight.grad = np.ones((3, 2), np.float32)
    optimizer.step()
    state = optimizer.state_dict()
    assert set(state) == {
        "lr",
        "step.weight",
        "step.bias",
        "exp_avg.weight",
        "exp_avg_sq.weight",
    }
    assert state["step.weight"] == 1 and state["step.bias"] == 0
    kept = state["exp_avg.weight"].copy()
    linear.weight.grad = np.ones((3, 2), np.float32)
    optimizer.step()
    np.testing.assert_array_equal(state["exp_avg.weight"], kept)
    optimizer.zero_grad()
    assert linear.weight.grad is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": None}, "missing key 'lr'"),
        ({"exp_avg.0": None}, r"missing key 'exp_avg\.0'"),
        ({"exp_avg.0": np.zeros(3, np.float32)}, r"'exp_avg\.0' must be \[2\] float32, got \[3\]"),
        ({"exp_avg.0": np.zeros(2)}, r"'exp_avg\.0' must be \[2\] float32, got \[2\] float64"),
        ({"other": np.zeros(2)}, "unexpected key 'other'"),
    ],
)
def test_load_errors_name_the_key(change: dict[str, Any], message: str) -> None:
    parameter = nn.Parameter(np.zeros(2, np.float32))
    parameter.grad = np.ones(2, np.float32)
    optimizer = optim.AdamW([parameter])
    optimizer.step()
    before = optimizer.state_dict()
    state = {key: value for key, value in (before | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    for key, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


def test_bad_arguments_are_named() -> None:
    parameter = nn.Parameter(np.zeros(2, np.float32))
    with pytest.raises(TypeError, match=r"params must hold Parameters .* got ndarray"):
        optim.SGD([np.zeros(2)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lr must be >= 0"):
        optim.SGD([parameter], lr=-1)
    with pytest.raises(ValueError, match="nesterov needs momentum > 0"):
        optim.SGD([parameter], nesterov=True)
    with pytest.raises(ValueError, match="betas must be two numbers"):
        optim.AdamW([parameter], betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="name 'a' comes twice"):
        optim.SGD([("a", parameter), ("a", nn.Parameter(np.zeros(1)))])
    assert len(optim.SGD([parameter, parameter]).params) == 1


# --- clipping ---------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clip_norm_matches_torch(
    norm_type: float, max_norm: float, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    ours: list[Any] = [nn.Parameter(np.zeros(s)) for s in ((100, 97), (3,), (2,))]
    theirs = [torch.nn.Parameter(torch.zeros(p.shape, dtype=torch.float64)) for p in ours]
    for p, q in zip(ours[:2], theirs[:2], strict=True):
        p.grad = rng.standard_normal(p.shape)
        q.grad = torch.from_numpy(p.grad.copy())
    norm = optim.clip_grad_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert norm == pytest.approx(float(expected), rel=1e-12)
    for p, q in zip(ours[:2], theirs[:2], strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-11)
    assert ours[2].grad is None


def test_clip_norm_of_large_float32_gradients_is_accurate() -> None:
    """Sums of 4096 squares in float32, in float64 from there: relative error below 4096 u."""
    parameter = nn.Parameter(np.zeros(1, np.float32))
    parameter.grad = np.full(3_000_001, 0.1, np.float32)
    exact = math.sqrt(3_000_001 * float(np.float32(0.1)) ** 2)
    assert optim.clip_grad_norm_([parameter], 1e9) == pytest.approx(exact, rel=4096 * 2**-24)


def test_clip_norm_not_finite() -> None:
    parameter = nn.Parameter(np.zeros(2, np.float32))
    parameter.grad = np.array([np.nan, 1], np.float32)
    with pytest.raises(RuntimeError, match="norm of the gradients is nan"):
        optim.clip_grad_norm_([parameter], 1.0, error_if_nonfinite=True)
    assert math.isnan(optim.clip_grad_norm_([parameter], 1.0, math.inf))
    assert optim.clip_grad_norm_([], 1.0) == 0


def test_clip_value() -> None:
    parameter = nn.Parameter(np.zeros(3, np.float32))
    parameter.grad = grad = np.array([-7, 0.5, 7], np.float32)
    optim.clip_grad_value_([("a", parameter)], 5)
    assert parameter.grad is grad
    np.testing.assert_array_equal(grad, [-5, 0.5, 5])


# --- schedules --------------------------------------------------------------------------------


def test_schedules() -> None:
    assert optim.constant(10) == 1
    assert [optim.linear_warmup(s, warmup_steps=4) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert optim.linear_warmup(0, warmup_steps=0) == 1

    def cosine(step: int) -> float:
        return optim.cosine(step, total_steps=12, warmup_steps=2, final=0.1)

    assert (cosine(0), cosine(1), cosine(2)) == (0.5, 1, 1)
    assert cosine(7) == pytest.approx(0.55)
    assert cosine(12) == pytest.approx(0.1) and cosine(99) == pytest.approx(0.1)
    noam = [optim.noam(s, d_model=512, warmup_steps=100) for s in range(300)]
    assert int(np.argmax(noam)) == 99
    assert noam[99] == pytest.approx(1 / math.sqrt(512 * 100))
    assert [optim.step_decay(s, step_size=2, gamma=0.5) for s in range(5)] == [1, 1, 0.5, 0.5, 0.25]
