"""RNN, LSTM and GRU modules against torch.nn: outputs, states and all gradients.

In float64 rounding stays below 1e-12 at these sizes, so the bound 1e-9 passes no wrong formula
and no wrong wiring; the kernels' own rounding is the business of test_rnn.py and its kin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import nn

torch = pytest.importorskip("torch", reason="torch, the second oracle, is not installed")
pytestmark = pytest.mark.torch

SEQ_LEN, BATCH, INPUT, HIDDEN = 6, 4, 5, 7
FORMS: dict[str, dict[str, Any]] = {
    "one_layer": {},
    "no_bias": {"bias": False},
    "stacked": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "stacked_bidirectional": {"num_layers": 2, "bidirectional": True},
    "batch_first": {"batch_first": True},
    "stacked_batch_first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}
KINDS: dict[str, dict[str, Any]] = {
    "RNN": {},
    "RNN_relu": {"nonlinearity": "relu"},
    "LSTM": {},
    "LSTM_proj": {"proj_size": 3},
    "GRU": {},
}


def close(ours: Any, theirs: Any) -> None:
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def pair(kind: str, rng: np.random.Generator, **options: Any) -> tuple[Any, Any]:
    """Our module and torch's, with the same random float64 weights."""
    name, options = kind.partition("_")[0], {**KINDS[kind], **options}
    ours = getattr(nn, name)(INPUT, HIDDEN, **options, dtype=np.float64, rng=rng)
    theirs = getattr(torch.nn, name)(INPUT, HIDDEN, **options, dtype=torch.float64)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    return ours, theirs


def as_states(kind: str, states: tuple[Any, ...]) -> Any:
    return states if kind.startswith("LSTM") else states[0]


def as_tuple(states: Any) -> tuple[Any, ...]:
    return states if isinstance(states, tuple) else (states,)


def random_states(module: Any, rng: np.random.Generator, batch: tuple[int, ...]) -> list[Any]:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    sizes = (module.output_size, HIDDEN)[: 2 if isinstance(module, nn.LSTM) else 1]
    return [rng.standard_normal((rows, *batch, size)) for size in sizes]


def leaf(array: np.ndarray) -> Any:
    return torch.from_numpy(array.copy()).requires_grad_()


def check_parameters(ours: Any, theirs: Any) -> None:
    for (name, p), (their_name, q) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == their_name
        close(p.grad, q.grad)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_hx", [False, True], ids=["no_hx", "hx"])
def test_matches_torch(kind: str, form: str, with_hx: bool, rng: np.random.Generator) -> None:
    ours, theirs = pair(kind, rng, **FORMS[form])
    x = rng.standard_normal((SEQ_LEN, BATCH, INPUT))
    x = x.swapaxes(0, 1).copy() if ours.batch_first else x
    states = random_states(ours, rng, (BATCH,)) if with_hx else []
    their_x, their_states = leaf(x), [leaf(h) for h in states]
    their_hx = as_states(kind, tuple(their_states)) if with_hx else None
    expected, expected_states = theirs(their_x, their_hx)
    hx = as_states(kind, tuple(states)) if with_hx else None

    y, final = ours(x, hx)
    (y_again, final_again), pullback = ours.vjp(x, hx)
    close(y, expected)
    np.testing.assert_array_equal(y, y_again)
    for h, h_again, their_h in zip(
        as_tuple(final), as_tuple(final_again), as_tuple(expected_states), strict=True
    ):
        close(h, their_h)
        np.testing.assert_array_equal(h, h_again)

    dy = rng.standard_normal(y.shape)
    dstates = [rng.standard_normal(h.shape) for h in as_tuple(final)]
    dx, dhx = pullback((dy, as_states(kind, tuple(dstates))))
    torch.autograd.backward(
        [expected, *as_tuple(expected_states)], [torch.from_numpy(g) for g in (dy, *dstates)]
    )
    close(dx, their_x.grad)
    if with_hx:
        assert isinstance(dhx, tuple) == kind.startswith("LSTM")
        for dh, their_h in zip(as_tuple(dhx), their_states, strict=True):
            close(dh, their_h.grad)
    else:
        assert dhx is None
    check_parameters(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_unbatched(kind: str, rng: np.random.Generator) -> None:
    ours, theirs = pair(kind, rng, num_layers=2, bidirectional=True, batch_first=True)
    x = rng.standard_normal((SEQ_LEN, INPUT))
    states = random_states(ours, rng, ())
    their_x, their_states = leaf(x), [leaf(h) for h in states]
    expected, expected_states = theirs(their_x, as_states(kind, tuple(their_states)))
    (y, final), pullback = ours.vjp(x, as_states(kind, tuple(states)))
    close(y, expected)
    for h, their_h in zip(as_tuple(final), as_tuple(expected_states), strict=True):
        close(h, their_h)
    dy = rng.standard_normal(y.shape)
    dx, dhx = pullback(dy)
    expected.backward(torch.from_numpy(dy))
    close(dx, their_x.grad)
    for dh, their_h in zip(as_tuple(dhx), their_states, strict=True):
        close(dh, their_h.grad)
    check_parameters(ours, theirs)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_match_packed_sequence(
    kind: str, batch_first: bool, rng: np.random.Generator
) -> None:
    ours, theirs = pair(kind, rng, num_layers=2, bidirectional=True, batch_first=batch_first)
    lengths = np.array([3, SEQ_LEN, 1, 4])
    x = rng.standard_normal((SEQ_LEN, BATCH, INPUT))
    x = x.swapaxes(0, 1).copy() if batch_first else x
    states = random_states(ours, rng, (BATCH,))
    their_x, their_states = leaf(x), [leaf(h) for h in states]
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        their_x, torch.from_numpy(lengths), batch_first=batch_first, enforce_sorted=False
    )
    packed_out, expected_states = theirs(packed, as_states(kind, tuple(their_states)))
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(packed_out, batch_first=batch_first)

    (y, final), pullback = ours.vjp(x, as_states(kind, tuple(states)), lengths=lengths)
    close(y, expected)
    for h, their_h in zip(as_tuple(final), as_tuple(expected_states), strict=True):
        close(h, their_h)
    dy = rng.standard_normal(y.shape)
    dstates = [rng.standard_normal(h.shape) for h in as_tuple(final)]
    dx, dhx = pullback((dy, as_states(kind, tuple(dstates))))
    torch.autograd.backward(
        [expected, *as_tuple(expected_states)], [torch.from_numpy(g) for g in (dy, *dstates)]
    )
    close(dx, their_x.grad)
    padding = np.arange(SEQ_LEN)[:, None] >= lengths
    assert not dx[padding.T if batch_first else padding].any()
    for dh, their_h in zip(as_tuple(dhx), their_states, strict=True):
        close(dh, their_h.grad)
    check_parameters(ours, theirs)


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("with_hx", [True, False])
def test_cells_match_torch(
    kind: str, batched: bool, with_hx: bool, rng: np.random.Generator
) -> None:
    ours = getattr(nn, f"{kind}Cell")(INPUT, HIDDEN, dtype=np.float64, rng=rng)
    theirs = getattr(torch.nn, f"{kind}Cell")(INPUT, HIDDEN, dtype=torch.float64)
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    batch = (BATCH,) if batched else ()
    x, h = rng.standard_normal((*batch, INPUT)), rng.standard_normal((*batch, HIDDEN))
    hx = h if with_hx else None
    their_x, their_h = leaf(x), leaf(h)
    expected = theirs(their_x, their_h if with_hx else None)
    close(ours(x, hx), expected)
    new, pullback = ours.vjp(x, hx)
    close(new, expected)
    dh = rng.standard_normal(new.shape)
    dx, dhx = pullback(dh)
    expected.backward(torch.from_numpy(dh))
    close(dx, their_x.grad)
    if with_hx:
        close(dhx, their_h.grad)
    else:
        assert dhx is None
    check_parameters(ours, theirs)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("with_hx", [True, False])
def test_lstm_cell_matches_torch(batched: bool, with_hx: bool, rng: np.random.Generator) -> None:
    ours = nn.LSTMCell(INPUT, HIDDEN, dtype=np.float64, rng=rng)
    theirs = torch.nn.LSTMCell(INPUT, HIDDEN, dtype=torch.float64)
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    batch = (BATCH,) if batched else ()
    x = rng.standard_normal((*batch, INPUT))
    hx: Any = None
    if with_hx:
        hx = tuple(rng.standard_normal((*batch, HIDDEN)) for _ in range(2))
    their_x = leaf(x)
    their_hx: Any = None if hx is None else tuple(leaf(h) for h in hx)
    expected = theirs(their_x, their_hx)
    state, pullback = ours.vjp(x, hx)
    for h, h_again, their_h in zip(state, ours(x, hx), expected, strict=True):
        close(h, their_h)
        np.testing.assert_array_equal(h, h_again)
    grads = tuple(rng.standard_normal(h.shape) for h in state)
    dx, dhx = pullback(grads)
    torch.autograd.backward(list(expected), [torch.from_numpy(g) for g in grads])
    close(dx, their_x.grad)
    if hx is None:
        assert dhx is None
    else:
        for dh, their_h in zip(dhx, their_hx, strict=True):
            close(dh, their_h.grad)
    check_parameters(ours, theirs)


def test_initial_values_follow_torch(rng: np.random.Generator) -> None:
    """Same bounds and shapes; uniform: the mean square of U(-b, b) is b^2 / 3."""
    ours = nn.LSTM(INPUT, 64, num_layers=2, rng=rng)
    theirs = torch.nn.LSTM(INPUT, 64, num_layers=2)
    for (name, p), (their_name, q) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert (name, p.shape) == (their_name, tuple(q.shape)) and p.dtype == np.float32
        assert np.abs(p.data).max() <= 1 / 8
    weights = ours.weight_hh_l0.data
    assert np.mean(weights.astype(np.float64) ** 2) == pytest.approx(1 / 192, rel=0.05)
