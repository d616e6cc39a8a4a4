"""Threads: results do not depend on their number, and nothing breaks when many call at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import seqkern
from support.calls import all_calls, arrays_of
from support.cases import (
    FLOAT32,
    DTypes,
    Recurrent,
    generator,
    make_arrays,
    make_gradients,
    random_array,
)
from support.compare import assert_bitwise_equal
from support.oracle import run
from support.process import run_python, run_worker

COUNTS = (2, 3, 7, 16)
CASES = [
    Recurrent("rnn", T=3, N=33, I=70, H=130),
    Recurrent("rnn", T=5, N=1, I=70, H=301),
    Recurrent("lstm", T=3, N=33, I=70, H=130, lengths="ragged"),
    Recurrent("lstm", T=5, N=1, I=70, H=301),
    Recurrent("lstm", T=4, N=9, I=33, H=96, P=50, peephole=True),
    Recurrent("gru", T=3, N=33, I=70, H=130),
    Recurrent("gru", T=5, N=2, I=70, H=301, reverse=True),
    Recurrent("gru", T=4, N=9, I=33, H=96, reset_after=False),
    Recurrent("lstm", T=17, N=2, I=20, H=150, P=90),  # long enough to lay its weights out as streams
    Recurrent("lstm", T=1, N=9, I=70, H=150, P=90),  # one step: each block of weights is packed when it is met
]
NAMES = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")


def check_thread_counts(ops: ModuleType, case: Recurrent, dtypes: DTypes) -> None:
    arrays, grads = make_arrays(case, dtypes), make_gradients(case, dtypes)
    ops.set_num_threads(1)
    want = run(ops, case, arrays, grads)
    for count in COUNTS:
        ops.set_num_threads(count)
        assert ops.get_num_threads() == count
        assert_bitwise_equal(run(ops, case, arrays, grads), want, f"{count} threads")


@NAMES
def test_any_number_of_threads(ops: ModuleType, case: Recurrent, dtype: DTypes, threads: None) -> None:
    check_thread_counts(ops, case, dtype)


@NAMES
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_on_any_number_of_threads(
    ops: ModuleType, case: Recurrent, precision: str, threads: None
) -> None:
    check_thread_counts(ops, replace(case, precision=precision), FLOAT32)


def layers(ops: ModuleType, dtypes: DTypes) -> tuple[Any, ...]:
    """linear, embedding, softmax, cross-entropy and dropout on arrays worth sharing out."""
    rng = generator("layers")
    x = random_array(rng, (300, 130), dtypes.x)
    weight = random_array(rng, (170, 130), dtypes.x)
    y, linear = ops.linear_forward(x, weight)
    ids = rng.integers(0, 300, 5000)
    rows, embedding = ops.embedding_forward(ids, x)
    p, softmax = ops.softmax_forward(y)
    loss, entropy = ops.cross_entropy_forward(y, rng.integers(0, 170, 300))
    one = np.ones((), loss.dtype)
    return (
        *(y, rows, p, loss, ops.dropout(rows, 0.5, seed=3)),
        *ops.linear_backward(y, linear),
        *ops.embedding_backward(rows, embedding),
        *ops.softmax_backward(y, softmax),
        *ops.cross_entropy_backward(one, entropy),
    )


def test_layers_on_any_number_of_threads(ops: ModuleType, dtype: DTypes, threads: None) -> None:
    ops.set_num_threads(1)
    want = layers(ops, dtype)
    for count in COUNTS:
        ops.set_num_threads(count)
        assert_bitwise_equal(layers(ops, dtype), want, f"{count} threads")


def norms(ops: ModuleType, dtypes: DTypes) -> tuple[Any, ...]:
    """The norms, rope and an activation, forward and backward, on arrays worth sharing out."""
    rng = generator("norms")
    x, residual, dy = (random_array(rng, (700, 130), dtypes.x) for _ in range(3))
    weight, bias = (random_array(rng, (130,), dtypes.weight) for _ in range(2))
    results: list[Any] = []
    for name in ("layer_norm", "rms_norm"):
        parameters = (weight, bias)[: 2 if name == "layer_norm" else 1]
        y, saved = getattr(ops, f"{name}_forward")(x, 130, *parameters)
        results += [y, *getattr(ops, f"{name}_backward")(dy, saved)]
        y, summed, saved = getattr(ops, f"add_{name}_forward")(x, residual, 130, *parameters)
        results += [y, summed, *getattr(ops, f"add_{name}_backward")(dy, x, saved)]
    for shape in ((700, 130), (10, 130, 70)):
        y, saved = ops.batch_norm_forward(x.reshape(shape), None, None, weight, bias, True)
        results += [y, *ops.batch_norm_backward(dy.reshape(shape), saved)]
    for name, options in (("rope", {}), ("rope", {"interleaved": True}), ("gelu", {}), ("sigmoid", {})):
        y, saved = getattr(ops, f"{name}_forward")(x, **options)
        results += [y, *getattr(ops, f"{name}_backward")(dy, saved)]
    return tuple(results)


def test_norms_on_any_number_of_threads(ops: ModuleType, dtype: DTypes, threads: None) -> None:
    ops.set_num_threads(1)
    want = norms(ops, dtype)
    for count in COUNTS:
        ops.set_num_threads(count)
        assert_bitwise_equal(norms(ops, dtype), want, f"{count} threads")


@NAMES
@pytest.mark.parametrize("repeats", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_repeats(ops: ModuleType, case: Recurrent, repeats: int, threads: None) -> None:
    arrays, grads = make_arrays(case, FLOAT32), make_gradients(case, FLOAT32)
    ops.set_num_threads(3)
    want = run(ops, case, arrays, grads)
    for _ in range(repeats):
        assert_bitwise_equal(run(ops, case, arrays, grads), want, "repeat")


def test_thirty_two_callers(ops: ModuleType, threads: None) -> None:
    """Every function from 32 threads at once gives what it gives alone."""
    ops.set_num_threads(4)
    calls = [(call, call.arrays()) for call in all_calls()]
    arrays = [(case, make_arrays(case, FLOAT32), make_gradients(case, FLOAT32)) for case in CASES]
    want = [tuple(arrays_of(call.invoke(ops, dict(given)))) for call, given in calls]
    want_layers = [run(ops, *given) for given in arrays]

    def work(index: int) -> None:
        for shift in range(len(calls)):
            at = (index + shift) % len(calls)
            call, given = calls[at]
            got = tuple(arrays_of(call.invoke(ops, dict(given))))
            assert_bitwise_equal(got, want[at], call.name)
        at = index % len(arrays)
        assert_bitwise_equal(run(ops, *arrays[at]), want_layers[at], str(arrays[at][0]))

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32)))


def test_number_of_threads_changes_while_others_call(ops: ModuleType, threads: None) -> None:
    case = CASES[2]
    arrays, grads = make_arrays(case, FLOAT32), make_gradients(case, FLOAT32)
    want = run(ops, case, arrays, grads)

    def work(index: int) -> None:
        for count in range(10):
            ops.set_num_threads(1 + (index + count) % 5)
            assert_bitwise_equal(run(ops, case, arrays, grads), want, "result")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize("what", ["fork", "mutate"])
def test_survives(what: str) -> None:
    """fork after warm-up; inputs mutated during a call (in a process of its own)."""
    result = run_worker("concurrency_worker.py", what)
    assert result.returncode == 0 and "done" in result.stdout, result.stderr[-4000:]


@pytest.mark.parametrize("settings", [("3", "2"), ("", "3")])
def test_environment_sets_the_number_of_threads(settings: tuple[str, str]) -> None:
    """SEQKERN_NUM_THREADS before OMP_NUM_THREADS."""
    own, openmp = settings
    code = "import seqkern; print(seqkern.get_num_threads())"
    assert run_python(code, SEQKERN_NUM_THREADS=own, OMP_NUM_THREADS=openmp) == "3"


def test_threadpoolctl_knows_the_pool(threads: None) -> None:
    control = pytest.importorskip("threadpoolctl")
    seqkern.set_num_threads(3)
    (pool,) = [p for p in control.threadpool_info() if "seqkern" in str(p.get("internal_api"))]
    assert pool["num_threads"] == 3
    with control.threadpool_limits(limits=1):
        assert seqkern.get_num_threads() == 1
    assert seqkern.get_num_threads() == 3
