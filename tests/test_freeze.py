"""Frozen modules: the same bits as before, from packed weights that are kept; no way past a change of the weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import seqkern
from ml_dtypes import bfloat16
from seqkern import _cpu, nn, optim
from support.calls import arrays_of
from support.cases import DTYPES, DTypes, random_array
from support.compare import assert_bitwise_equal

INPUT, HIDDEN = 70, 100  # no multiple of a panel; sums long enough for the matrix unit
BATCHES, LENGTHS = (1, 2, 3, 4, 8, 17), (1, 3, 20)
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn": ("RNN", {}),
    "lstm": ("LSTM", {}),
    "lstm_stacked_bidirectional": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "lstm_projected": ("LSTM", {"proj_size": 66, "bidirectional": True}),
    "lstm_peephole": ("LSTM", {"peephole": True}),
    "gru": ("GRU", {}),
    "gru_reset_first": ("GRU", {"reset_after": False, "bidirectional": True}),
    "rnn_cell": ("RNNCell", {}),
    "lstm_cell": ("LSTMCell", {}),
    "gru_cell": ("GRUCell", {}),
    "gru_cell_reset_first": ("GRUCell", {"reset_after": False}),
}


def make(form: str, dtypes: DTypes, precision: str | None, rng: np.random.Generator) -> Any:
    name, options = FORMS[form]
    module = getattr(nn, name)(INPUT, HIDDEN, precision=precision, dtype=dtypes.weight, rng=rng, **options)
    for key, parameter in module.named_parameters():
        if not key.startswith("weight_") or "peephole" in key:
            parameter.data = parameter.data.astype(dtypes.bias)
    return module


def small(rng: np.random.Generator, **options: Any) -> tuple[Any, np.ndarray]:
    """A frozen LSTM that has kept a form of its weights, and its input."""
    lstm = nn.LSTM(5, 6, rng=rng, **options).freeze()
    x = rng.standard_normal((3, 2, 5)).astype(np.float32)
    lstm(x)
    assert kept(lstm) > 0
    return lstm, x


def kept(module: Any) -> int:
    return sum(_cpu.kept_bytes(p.data) for p in module.parameters())


def bits(value: Any) -> tuple[np.ndarray, ...]:
    return tuple(arrays_of(value))


# --- the same bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("form", FORMS)
def test_same_bits(isa: str, form: str, dtypes: DTypes, precision: str, rng: np.random.Generator) -> None:
    """One module for all batches and lengths, in an order in which the forms of its weights take turns."""
    plain = make(form, dtypes, precision, rng)
    frozen = copy.deepcopy(plain).freeze()
    cell = form.endswith(("cell", "cell_reset_first"))
    for seq_len in LENGTHS[: 1 if cell else 3]:
        for batch in BATCHES:
            x = random_array(rng, (seq_len, batch, INPUT), dtypes.x)
            lengths = {"lengths": rng.integers(0, seq_len + 1, batch)}
            for options in ({},) if cell else ({}, lengths):
                given = x[0] if cell else x
                want = bits(plain(given, **options))
                for use in ("packed", "kept"):
                    where = f"T={seq_len} N={batch} {options} {use}"
                    assert_bitwise_equal(bits(frozen(given, **options)), want, where)
    sizes = kept(frozen)
    for batch in BATCHES:
        frozen(random_array(rng, (batch, INPUT) if cell else (1, batch, INPUT), dtypes.x))
    assert kept(frozen) == sizes > 0  # nothing more to pack


@pytest.mark.parametrize("form", FORMS)
def test_same_gradients(form: str, rng: np.random.Generator) -> None:
    plain = make(form, DTYPES[0], None, rng)
    frozen = copy.deepcopy(plain).freeze()
    x = rng.standard_normal((5, INPUT) if "cell" in form else (2, 5, INPUT)).astype(np.float32)
    results = []
    for module in (plain, frozen, frozen):
        module.zero_grad()
        y, pullback = module.vjp(x)
        first = y[0] if isinstance(y, tuple) else y
        results.append(bits((y, pullback(first)[0], *(p.grad for p in module.parameters()))))
    assert_bitwise_equal(results[1], results[0], "first")
    assert_bitwise_equal(results[2], results[0], "second")


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: d.name)
def test_any_instruction_set_and_precision_after_any_other(dtypes: DTypes, rng: np.random.Generator) -> None:
    lstm = make("lstm", dtypes, None, rng)
    frozen = copy.deepcopy(lstm).freeze()
    before = _cpu.active_isa()
    try:
        for isa in [*_cpu.available_isas(), *reversed(_cpu.available_isas())]:
            _cpu.set_isa(isa)
            for precision, batch in ((p, n) for p in ("medium", "high", "highest", "medium") for n in (1, 5, 17)):
                lstm.precision = frozen.precision = precision
                x = random_array(rng, (1, batch, INPUT), dtypes.x)
                assert_bitwise_equal(bits(frozen(x)), bits(lstm(x)), f"{isa} {precision} N={batch}")
    finally:
        _cpu.set_isa(before)


def test_packed_by_any_number_of_threads(threads: None, rng: np.random.Generator) -> None:
    lstm = nn.LSTM(INPUT, 301, rng=rng)
    for batch in (1, 9):
        x = rng.standard_normal((3, batch, INPUT)).astype(np.float32)
        want = bits(lstm(x))
        for packing, using in ((1, 7), (7, 3), (3, 1)):
            lstm.unfreeze().freeze()
            for count in (packing, using):
                seqkern.set_num_threads(count)
                assert_bitwise_equal(bits(lstm(x)), want, f"N={batch} packed by {packing}, used by {count}")


def test_many_threads_call_at_once(rng: np.random.Generator) -> None:
    lstm = nn.LSTM(INPUT, HIDDEN, bidirectional=True, rng=rng)
    inputs = [rng.standard_normal((t, n, INPUT)).astype(np.float32) for t in (1, 20) for n in (1, 3, 9)]
    want = [bits(lstm(x)) for x in inputs]
    for _ in range(5):
        lstm.unfreeze().freeze()
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lstm, inputs * 8))
        for got, expected in zip(results, want * 8, strict=True):
            assert_bitwise_equal(bits(got), expected, "called at once")


@pytest.fixture
def allocations() -> Iterator[None]:
    yield
    _cpu.fail_allocation(0)


@pytest.mark.parametrize("batch", [1, 5])
def test_failing_allocation_keeps_nothing_half_packed(batch: int, allocations: None, rng: np.random.Generator) -> None:
    lstm = nn.LSTM(INPUT, HIDDEN, rng=rng, proj_size=66)
    x = rng.standard_normal((2, batch, INPUT)).astype(np.float32)
    want, failures = bits(lstm(x)), 0
    for nth in range(1, 12):
        lstm.unfreeze().freeze()
        _cpu.fail_allocation(nth)
        try:
            lstm(x)
        except MemoryError:
            failures += 1
        _cpu.fail_allocation(0)
        assert_bitwise_equal(bits(lstm(x)), want, f"after failure {nth}")
    assert failures >= 6  # three outputs and three forms


# --- one array in several places --------------------------------------------------------------


def test_tied_parameters_stay_tied(rng: np.random.Generator) -> None:
    model: Any = nn.ModuleList([nn.GRU(6, 6, rng=rng), nn.GRU(6, 6, rng=rng)])
    first, second = model
    second.weight_ih_l0 = first.weight_ih_l0
    second.weight_hh_l0.data = first.weight_hh_l0.data
    x = rng.standard_normal((3, 2, 6)).astype(np.float32)
    want = bits(tuple(m(x) for m in model))
    for change in (model.freeze, model.unfreeze, model.freeze, lambda: model.to("float64"), model.unfreeze):
        change()
        assert second.weight_ih_l0 is first.weight_ih_l0
        assert second.weight_hh_l0.data is first.weight_hh_l0.data
        if first.weight_ih_l0.dtype == np.float32:
            assert_bitwise_equal(bits(tuple(m(x) for m in model)), want, "tied")


def test_one_array_as_several_weights(rng: np.random.Generator) -> None:
    """Also as weights that are packed differently, in one call and in turns."""
    wide = _cpu.freeze(rng.standard_normal((24, 6)).astype(np.float32) / 5)
    hidden = _cpu.freeze(rng.standard_normal((24, 24)).astype(np.float32) / 5)
    for batch in (1, 5):
        x = rng.standard_normal((2, batch, 6)).astype(np.float32)
        for _ in range(2):
            for op, weights, options in (
                (seqkern.lstm, (wide, hidden), {"weight_hr": wide}),
                (seqkern.lstm, (wide, wide), {}),
                (seqkern.gru, (wide, wide[:, :6] @ np.ones((6, 8), np.float32)), {}),
            ):
                plain = [w.copy() for w in weights]
                others = {k: v.copy() for k, v in options.items()}
                got = op(x, *weights, **options)
                assert_bitwise_equal(bits(got), bits(op(x, *plain, **others)), f"{op.__name__} N={batch}")


def test_views_keep_nothing(rng: np.random.Generator) -> None:
    weight = _cpu.freeze(rng.standard_normal((24, 12)).astype(np.float32))
    x = rng.standard_normal((2, 5, 6)).astype(np.float32)
    rows = weight.reshape(2, 24, 6)
    for view in (rows[0], rows[1], weight[:, :6], weight[:, ::2], weight[:, ::-2]):
        got = seqkern.lstm(x, view, view)
        assert_bitwise_equal(bits(got), bits(seqkern.lstm(x, view.copy(), view.copy())), "view")
        assert _cpu.kept_bytes(view) == 0
    assert _cpu.kept_bytes(weight) == 0


# --- changes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5])
def test_assigned_arrays_are_followed(batch: int, rng: np.random.Generator) -> None:
    lstm: Any = nn.LSTM(5, 6, rng=rng).freeze()
    x = rng.standard_normal((3, batch, 5)).astype(np.float32)
    for frozen_again in (False, True, False):
        before = bits(lstm(x))
        weights = rng.standard_normal((24, 6)).astype(np.float32)
        lstm.weight_hh_l0.data = weights
        if frozen_again:
            lstm.freeze()
        after = bits(lstm(x))
        assert not np.array_equal(after[0], before[0])
        assert_bitwise_equal(after, bits(copy.deepcopy(lstm)(x)), "assigned")
        weights *= 2  # the caller's array, the module's only if it was not frozen since
        followed = bits(lstm(x))
        assert np.array_equal(followed[0], after[0]) == frozen_again


def test_replaced_parameters_are_followed(rng: np.random.Generator) -> None:
    lstm, x = small(rng)
    lstm.weight_ih_l0 = nn.Parameter(rng.standard_normal((24, 5)).astype(np.float32))
    assert_bitwise_equal(bits(lstm(x)), bits(copy.deepcopy(lstm)(x)), "replaced")


def test_unfrozen_arrays_are_followed(rng: np.random.Generator) -> None:
    lstm, x = small(rng)
    before = bits(lstm(x))
    assert lstm.unfreeze() is lstm
    assert kept(lstm) == 0
    lstm.weight_hh_l0.data *= 2
    after = bits(lstm(x))
    assert not np.array_equal(after[0], before[0])
    assert_bitwise_equal(bits(lstm.freeze()(x)), after, "frozen again")
    assert_bitwise_equal(bits(lstm(x)), after, "kept")


def test_cast_modules_stay_frozen(rng: np.random.Generator) -> None:
    lstm, x = small(rng)
    for dtype in (np.float64, bfloat16, np.float32):
        lstm.to(dtype)
        assert all(p.dtype == dtype and not p.data.flags.writeable for p in lstm.parameters())
        want = bits(copy.deepcopy(lstm)(x.astype(dtype)))
        for _ in range(2):
            assert_bitwise_equal(bits(lstm(x.astype(dtype))), want, str(dtype))
        assert kept(lstm) > 0
    arrays = [p.data for p in lstm.parameters()]
    assert all(p.data is array for p, array in zip(lstm.to("cpu").parameters(), arrays, strict=True))


def test_load_state_dict_is_refused(rng: np.random.Generator) -> None:
    lstm, x = small(rng)
    model: Any = nn.ModuleList([nn.Linear(5, 5, rng=rng), lstm])
    before = {key: value.copy() for key, value in model.state_dict().items()}
    state = {key: value + 1 for key, value in before.items()}
    with pytest.raises(ValueError, match=r"load_state_dict: '1\.weight_ih_l0' is frozen: call unfreeze\(\) first"):
        model.load_state_dict(state)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    model.load_state_dict({"0.bias": state["0.bias"]}, strict=False)  # of what is not frozen
    model.unfreeze().load_state_dict(state)
    want = bits(lstm(x))
    assert_bitwise_equal(bits(model.freeze()[1](x)), want, "loaded")


def test_writes_are_refused(rng: np.random.Generator) -> None:
    lstm, x = small(rng)
    for parameter in lstm.parameters():
        array = parameter.data
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        with pytest.raises(ValueError, match="read-only"):
            parameter.data += 1
        with pytest.raises(ValueError, match="read-only"):
            np.add(array, 1, out=array)
        for view in (array, array[:], array.reshape(-1), array.view(np.uint8)):
            with pytest.raises(ValueError, match="WRITEABLE"):
                view.flags.writeable = True
        with pytest.raises(ValueError, match="must be writable, got a read-only array"):
            seqkern.gelu(np.zeros_like(array), out=array)
    assert_bitwise_equal(bits(lstm(x)), bits(copy.deepcopy(lstm)(x)), "after all that")


def test_no_writable_view_is_left_behind(rng: np.random.Generator) -> None:
    linear: Any = nn.Linear(5, 6, rng=rng)
    mine = rng.standard_normal((6, 5)).astype(np.float32)
    read_only = mine[:]
    read_only.flags.writeable = False
    linear.weight.data, bias = read_only, linear.bias.data
    linear.freeze()
    want = [p.data.copy() for p in linear.parameters()]
    mine += 1
    bias += 1
    for parameter, value in zip(linear.parameters(), want, strict=True):
        np.testing.assert_array_equal(parameter.data, value)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: optim.Adagrad(p, lr=0.1),
        lambda p: optim.AdamW(p, lr=0.1),
    ],
    ids=["sgd", "adagrad", "adamw"],
)
def test_optimizer_step_is_refused(make_optimizer: Any, rng: np.random.Generator) -> None:
    """Nothing changes, not even the parameters before it; after unfreeze() training goes on as if never frozen."""
    model: Any = nn.ModuleList([nn.Linear(5, 5, rng=rng), nn.LSTM(5, 6, rng=rng)])
    twin = copy.deepcopy(model)
    x = rng.standard_normal((3, 2, 5)).astype(np.float32)
    optimizer, other = (make_optimizer(m.named_parameters()) for m in (model, twin))

    def train(m: Any) -> None:
        z, pull_linear = m[0].vjp(x)
        (y, _), pull_lstm = m[1].vjp(z)
        pull_linear(pull_lstm(y)[0])

    for each, steps in ((model, optimizer), (twin, other)):
        train(each)
        steps.step()
        steps.zero_grad()
    model[1].freeze()
    train(model)
    optim.clip_grad_norm_(model.parameters(), 0.1)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(ValueError, match=r"step: '1\.weight_ih_l0' is frozen: call unfreeze\(\) first"):
        optimizer.step()
    for now, then in zip((model.state_dict(), optimizer.state_dict()), before, strict=True):
        assert now.keys() == then.keys()
        for key in now:
            np.testing.assert_array_equal(now[key], then[key])
    model.unfreeze()
    optimizer.step()
    train(twin)
    optim.clip_grad_norm_(twin.parameters(), 0.1)
    other.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)


# --- the tree, copies, and what is no weight ---------------------------------------------------


def test_freezing_twice_changes_nothing(rng: np.random.Generator) -> None:
    model = nn.Sequential(nn.Linear(5, 5, rng=rng), nn.LSTM(5, 6, rng=rng))
    assert model.freeze() is model
    arrays = [p.data for p in model.parameters()]
    model[1](rng.standard_normal((3, 2, 5)).astype(np.float32))
    sizes = kept(model)
    model.freeze()
    assert all(p.data is array for p, array in zip(model.parameters(), arrays, strict=True))
    assert kept(model) == sizes > 0
    assert all(p.data.flags.c_contiguous and p.data.ctypes.data % 64 == 0 for p in model.unfreeze().parameters())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_not_frozen(clone: Any, rng: np.random.Generator) -> None:
    for module in (nn.LSTM(5, 6, num_layers=2, rng=rng), nn.GRUCell(5, 6, rng=rng)):
        x = rng.standard_normal((2, 5)).astype(np.float32)
        want = bits(module.freeze()(x))
        other = clone(module)
        assert_bitwise_equal(bits(other(x)), want, "copy")
        for parameter in other.parameters():
            parameter.data *= 2
        assert not np.array_equal(bits(other(x))[0], want[0])
        assert_bitwise_equal(bits(module(x)), want, "original")


def test_arrays_of_other_libraries_are_left_alone() -> None:
    class Other:
        shape, dtype = (2, 3), np.dtype(np.float32)

    linear: Any = nn.Linear(3, 2)
    data = linear.weight.data = Other()
    linear.freeze().unfreeze()
    assert linear.weight.data is data


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bfloat16, np.int64])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (4, 6)])
def test_freeze_copies_any_array(dtype: Any, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    for array in (rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).astype(dtype).T):
        frozen = _cpu.freeze(array)
        assert type(frozen) is np.ndarray and frozen.dtype == dtype and frozen.shape == array.shape
        assert frozen.flags.c_contiguous and not frozen.flags.writeable and _cpu.freeze(frozen) is frozen
        np.testing.assert_array_equal(frozen, array)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([1.0], "freeze: array must be a NumPy array, got list"),
        (np.array([None]), "freeze: array must hold numbers, got object"),
        (np.zeros(2, ">f4"), "freeze: array must be in native byte order, got dtype >f4"),
    ],
)
def test_freeze_names_a_bad_argument(array: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        _cpu.freeze(array)
