"""What every recurrent kernel must satisfy. test_rnn, test_lstm and test_gru name the variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
from support.bounds import recurrent_estimates
from support.cases import (
    ALL_TAILS,
    BATCHES,
    FLOAT32,
    Array,
    DTypes,
    Recurrent,
    block_cases,
    make_arrays,
    make_gradients,
    option_cases,
    shape_cases,
)
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS
from support.oracle import (
    as_float64,
    call,
    call_backward,
    call_forward,
    expected,
    run,
    running_bound,
)
from support.torch_oracle import supports, torch_results

STREAMS = [
    *((N, None, None) for N in (1, 2, 4, 33)),
    (4, "ragged", None),
    (33, "ragged", None),
    *((N, None, precision) for N in (1, 33) for precision in ("high", "medium")),
]
LONG = [64, pytest.param(1024, marks=pytest.mark.slow)]


class RecurrentSuite:
    """Tests parametrised by the subclass: `variant` is one of `variants`, `case` one of `cases`."""

    variants: ClassVar[Sequence[Recurrent]]
    cases: ClassVar[Sequence[Recurrent]]
    torch_variants: ClassVar[Sequence[Recurrent]]

    def __init_subclass__(cls) -> None:
        first, *_ = cls.variants
        options = [case for variant in cls.variants for case in option_cases(variant)]
        shapes = [*shape_cases(first), *block_cases(first)]
        cls.cases = list(dict.fromkeys([*shapes, *options]))
        cls.torch_variants = [variant for variant in cls.variants if supports(variant)]

    def test_forward(self, ops: ModuleType, case: Recurrent, dtype: DTypes) -> None:
        check_forward(ops, case, dtype)

    def test_backward(self, ops: ModuleType, case: Recurrent, dtype: DTypes) -> None:
        check_backward(ops, case, dtype)

    @pytest.mark.slow
    @pytest.mark.parametrize("N", BATCHES)
    def test_every_tail(self, ops: ModuleType, variant: Recurrent, N: int, dtype: DTypes) -> None:
        for size in ALL_TAILS:
            case = replace(variant, N=N, H=size, P=variant.P and size // 2 + 1, T=2)
            check_forward(ops, case, dtype)
            check_backward(ops, case, dtype)

    @pytest.mark.slow
    def test_every_block(self, ops: ModuleType, variant: Recurrent, dtype: DTypes) -> None:
        for case in block_cases(variant):
            check_forward(ops, case, dtype)
            check_backward(ops, case, dtype)

    @pytest.mark.parametrize("precision", ["highest", "high", "medium"])
    @pytest.mark.parametrize("N", [1, 33])
    def test_precision(self, ops: ModuleType, variant: Recurrent, N: int, precision: str, dtype: DTypes) -> None:
        case = replace(variant, N=N, I=40, H=48, precision=precision)
        check_forward(ops, case, dtype)
        check_backward(ops, case, dtype)

    def test_gradient_of_none_is_zero(self, ops: ModuleType, variant: Recurrent, dtype: DTypes) -> None:
        want = expected(variant, dtype)
        _, saved = call_forward(ops, variant, want.arrays)
        for name, gradient in want.grad_outputs.items():
            others: dict[str, Array | None] = {k: v for k, v in want.grad_outputs.items()}
            given = {**others, name: np.zeros_like(gradient)}
            absent = tuple(call_backward(ops, variant, {**others, name: None}, saved).values())
            zeroed = tuple(call_backward(ops, variant, given, saved).values())
            assert_bitwise_equal(absent, zeroed, f"{name}=None")
        nothing = getattr(ops, f"{variant.op}_backward")(None, None, saved)
        assert all(gradient is None or not gradient.any() for gradient in nothing)

    def test_layouts(self, ops: ModuleType, variant: Recurrent, dtype: DTypes) -> None:
        """Any strides, alignment or order of any input: the same bits, and inputs untouched."""
        case = replace(variant, H=17, lengths="ragged")
        arrays, grads = make_arrays(case, dtype), make_gradients(case, dtype)
        want = run(ops, case, arrays, grads)
        for layout in LAYOUTS:
            laid_out = {k: layout(v) for k, v in arrays.items()}
            laid_grads = {k: layout(v) for k, v in grads.items()}
            got = run(ops, case, laid_out, laid_grads)
            assert_bitwise_equal(got, want, layout.__name__)
            for name, array in (arrays | grads).items():
                assert_bitwise_equal((laid_out | laid_grads)[name], array, name)

    def test_zero_strides(self, ops: ModuleType, variant: Recurrent, dtype: DTypes) -> None:
        """One step and one row broadcast over all: the same bits as their copies."""
        arrays, grads = make_arrays(variant, dtype), make_gradients(variant, dtype)
        repeated = {k: np.broadcast_to(v[:1], v.shape) for k, v in (arrays | grads).items()}
        copies = {k: v.copy() for k, v in repeated.items()}
        got, want = (run(ops, variant, {k: a[k] for k in arrays}, {k: a[k] for k in grads}) for a in (repeated, copies))
        assert_bitwise_equal(got, want, "broadcast")

    @pytest.mark.parametrize("N, lengths, precision", STREAMS)
    def test_streaming(
        self,
        ops: ModuleType,
        variant: Recurrent,
        N: int,
        lengths: str | None,
        precision: str | None,
        dtype: DTypes,
    ) -> None:
        """Chunks with the state handed on equal the whole sequence bit for bit."""
        case = replace(variant, T=24, N=N, H=35, lengths=lengths, precision=precision)
        arrays = make_arrays(case, dtype)
        whole = call(ops, case, arrays)
        steps, cuts = [], (0, 1, 2, 5, 16, 24)
        for start, stop in pairwise(cuts):
            chunk = {**arrays, "x": arrays["x"][start:stop]}
            if lengths:
                chunk["lengths"] = np.clip(chunk["lengths"] - start, 0, stop - start)
            part = call(ops, case, chunk)
            steps.append(part["y"])
            arrays |= {f"{name[0]}0": part[name] for name in case.outputs[1:]}
        assert_bitwise_equal(np.concatenate(steps), whole["y"], "y")
        for name in case.outputs[1:]:
            assert_bitwise_equal(arrays[f"{name[0]}0"], whole[name], name)

    @pytest.mark.parametrize("T", LONG)
    def test_no_drift(self, ops: ModuleType, variant: Recurrent, T: int, dtype: DTypes) -> None:
        """A contracting network forgets its errors: the bound of T steps stays that of a few."""
        case = replace(variant, T=T, N=2, H=20, P=variant.P and 14, spread=0.7)
        check_forward(ops, case, dtype)
        check_backward(ops, case, dtype)

    @pytest.mark.parametrize("T", LONG)
    def test_every_step(self, ops: ModuleType, variant: Recurrent, T: int) -> None:
        """Each step, from the kernel's own state before it, is within the one-step bound.

        This stays tight however long the sequence and however expanding the network.
        """
        case = replace(variant, T=T, N=2, H=33, spread=2.0)
        arrays = make_arrays(case, FLOAT32)
        outputs, saved = call_forward(ops, case, arrays)
        one = replace(case, T=1)
        grads = as_float64(make_gradients(one, FLOAT32))
        for t in range(case.T):
            step = {**arrays, "x": arrays["x"][t : t + 1]}
            if t:
                step["h0"] = outputs["y"][t - 1]
            if t and case.op == "lstm":
                step["c0"] = saved.cells[t - 1]
            estimate = recurrent_estimates(one, FLOAT32, as_float64(step), grads)[0]["y"]
            bound = running_bound(estimate, FLOAT32, "y")
            assert_matches(outputs["y"][t : t + 1], estimate[0], bound, f"y[{t}]")

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_rows_stay_apart(self, ops: ModuleType, variant: Recurrent, dtype: DTypes, bad: float) -> None:
        """NaN or infinity in one batch row reaches no other row, and its own from there on."""
        case = replace(variant, N=6, H=17)
        arrays, grads = make_arrays(case, dtype), make_gradients(case, dtype)
        poisoned = {**arrays, "x": arrays["x"].copy()}
        first, row, others = case.T // 2, 1, [0, 2, 3, 4, 5]
        poisoned["x"][first, row] = bad
        (clean, saved_clean), (dirty, saved) = (call_forward(ops, case, given) for given in (arrays, poisoned))
        for name in case.outputs:
            at = np.s_[:, others] if name == "y" else np.s_[others]
            assert_bitwise_equal(dirty[name][at], clean[name][at], name)
        assert_bitwise_equal(dirty["y"][:first, row], clean["y"][:first, row], "y before")
        if np.isnan(bad):
            assert np.isnan(dirty["y"][first:, row]).all()
        want = call_backward(ops, case, {**grads}, saved_clean)
        got = call_backward(ops, case, {**grads}, saved)
        for name, at in (("dx", np.s_[:, others]), ("dh0", np.s_[others])):
            assert_bitwise_equal(got[name][at], want[name][at], name)  # type: ignore[index]

    @pytest.mark.parametrize("reverse", [False, True])
    def test_padding_is_ignored(self, ops: ModuleType, variant: Recurrent, dtype: DTypes, reverse: bool) -> None:
        """NaN past a row's length changes no bit of anything; y and dx are 0 there."""
        case = replace(variant, T=6, N=7, H=17, lengths="ragged", reverse=reverse)
        arrays, grads = make_arrays(case, dtype), make_gradients(case, dtype)
        past = np.arange(case.T)[:, None] >= arrays["lengths"]
        want = run(ops, case, arrays, grads)
        for group, name in ((arrays, "x"), (grads, "dy")):
            group[name] = group[name].copy()
            group[name][past] = np.nan
        got = run(ops, case, arrays, grads)
        assert_bitwise_equal(got, want, "with NaN in the padding")
        assert not got[0][past].any()
        assert not got[len(case.outputs)][past].any()

    def test_denormals(self, ops: ModuleType, variant: Recurrent, dtype: DTypes) -> None:
        """Subnormal inputs: within the bound of the reference on the same inputs."""
        case = replace(variant, biases=())
        arrays = make_arrays(case, dtype)
        tiny = float(np.finfo(dtype.cell).smallest_normal) / 4
        for name in ("x", "h0"):
            arrays[name] = (arrays[name].astype(np.float64) * tiny).astype(dtype.x)
        grads = as_float64(make_gradients(case, dtype))
        estimates, _ = recurrent_estimates(case, dtype, as_float64(arrays), grads)
        outputs = call(ops, case, arrays)
        for name, estimate in estimates.items():
            assert_matches(outputs[name], estimate[0], running_bound(estimate, dtype, name), name)

    @pytest.mark.torch
    @pytest.mark.parametrize("lengths", [None, "ragged"])
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("biases", [(), ("ih", "hh")])
    def test_agrees_with_torch(
        self,
        ops: ModuleType,
        torch_variant: Recurrent,
        dtype: DTypes,
        lengths: str | None,
        reverse: bool,
        biases: tuple[str, ...],
    ) -> None:
        """torch's layer, on PackedSequences too, within the same bounds as the reference."""
        case = replace(torch_variant, T=6, N=5, lengths=lengths, reverse=reverse, biases=biases)
        arrays, grads = make_arrays(case, dtype), make_gradients(case, dtype)
        if lengths:
            arrays["lengths"] = np.maximum(arrays["lengths"], 1)
        wide, wide_grads = as_float64(arrays), as_float64(grads)
        estimates = recurrent_estimates(case, dtype, wide, wide_grads)
        outputs, saved = call_forward(ops, case, arrays)
        got = {**outputs, **call_backward(ops, case, {**grads}, saved)}
        for want, bounds in zip(torch_results(case, wide, wide_grads), estimates, strict=True):
            for name, value in want.items():
                bound = running_bound(bounds[name], dtype, name)
                assert_matches(np.asarray(got[name]), value, bound, name)

    def test_lengths_of_any_integer_dtype(self, ops: ModuleType, variant: Recurrent) -> None:
        case = replace(variant, N=7, lengths="ragged")
        arrays = make_arrays(case, FLOAT32)
        want = tuple(call(ops, case, arrays).values())
        for kind in ("i1", "u1", "i4", "u4", "i8", "u8"):
            arrays["lengths"] = arrays["lengths"].astype(kind)
            assert_bitwise_equal(tuple(call(ops, case, arrays).values()), want, kind)


def check_forward(ops: ModuleType, case: Recurrent, dtypes: DTypes) -> None:
    """`<op>` within the bound, of the promised dtypes, and `<op>_forward` the same bits."""
    want = expected(case, dtypes)
    got = call(ops, case, want.arrays)
    for name, reference in want.outputs.items():
        assert got[name].dtype == dtypes.of(name), name
        assert_matches(got[name], reference, want.output_bounds[name], name)
    again, _ = call_forward(ops, case, want.arrays)
    assert_bitwise_equal(tuple(again.values()), tuple(got.values()), f"{case.op}_forward")


def check_backward(ops: ModuleType, case: Recurrent, dtypes: DTypes) -> None:
    """Every gradient within its bound; None exactly for the arguments that were not given."""
    want = expected(case, dtypes)
    _, saved = call_forward(ops, case, want.arrays)
    gradients = call_backward(ops, case, {**want.grad_outputs}, saved)
    assert gradients.keys() == want.gradients.keys()
    for name, reference in want.gradients.items():
        gradient = gradients[name]
        if reference is None or gradient is None:
            assert gradient is reference, name
            continue
        assert gradient.dtype == dtypes.of_gradient(name), name
        assert_matches(gradient, reference, want.gradient_bounds[name], name)
