"""attention_paged: bit for bit attention over the same keys side by side, and no page read that is not in the table."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import seqkern
from seqkern import _cpu, reference
from support.attention_bounds import attention_bounds
from support.cases import BFLOAT16, FLOAT32, FLOAT64, Array, DTypes, generator
from support.compare import assert_bitwise_equal, assert_matches
from support.process import run_worker
from support.tolerance import finish

DTYPES = pytest.mark.parametrize("dtypes", [FLOAT32, FLOAT64, BFLOAT16], ids=lambda d: d.name)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": "bottom_right"},
    "top left": {"is_causal": True},
    "window": {"window": (30, None), "causal": "bottom_right"},
    "softcap": {"softcap": 1.5, "scale": 0.7},
    "alibi": {"alibi_slopes": True},
    "sinks": {"sinks": True},
    "lengths": {"q_lengths": True, "causal": "bottom_right"},
    "everything": {
        "causal": "bottom_right", "window": (200, 3), "softcap": 2.0, "alibi_slopes": True, "sinks": True,
        "q_lengths": True,
    },
}  # fmt: skip
# B, Hq, Hkv, Lq, D, Dv, page size, lengths: one row and a few, groups, rows that are packed first, empty sequences.
CASES = [
    (3, 2, 2, 1, 16, 16, 16, (1, 600, 0)),
    (2, 8, 2, 2, 33, 17, 7, (1030, 95)),
    (2, 4, 4, 1, 64, 64, 1, (40, 3)),
    (1, 1, 1, 3, 8, 24, 256, (1100,)),
    (2, 4, 2, 19, 16, 16, 16, (130, 77)),
    (2, 2, 1, 40, 9, 5, 3, (33, 64)),
    (0, 2, 2, 1, 4, 4, 8, ()),
    (2, 2, 2, 0, 4, 4, 8, (3, 9)),
    (1, 2, 2, 5, 4, 4, 8, (0,)),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def make(case: tuple[Any, ...], name: str, dtypes: DTypes) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arguments by name, pages in random order among others full of NaN, -1 past every length; the options."""
    batch, heads, kv_heads, rows, dim, value_dim, size, lengths = case
    rng = generator("paged", case, name, dtypes.name)
    needed = [-(-n // size) for n in lengths]
    spare, width = 3, max(needed, default=0) + 2
    pages = rng.permutation(sum(needed) + spare)
    table, used = np.full((batch, width), -1, np.int32), []
    for b, count in enumerate(needed):
        table[b, :count] = pages[len(used) : len(used) + count]
        used += list(table[b, :count])
    key, value = (
        rng.standard_normal((len(pages), size, kv_heads, n)).astype(dtypes.x) for n in (dim, value_dim)
    )
    unused = np.setdiff1d(pages, used)
    key[unused] = value[unused] = np.nan
    for b, n in enumerate(lengths):
        if n % size:
            key[table[b, n // size], n % size :] = value[table[b, n // size], n % size :] = np.nan
    arrays = {
        "query": rng.standard_normal((batch, heads, rows, dim)).astype(dtypes.x),
        "key_pages": key,
        "value_pages": value,
        "block_table": table,
        "kv_lengths": np.array(lengths, np.int64),
    }
    options = dict(OPTIONS[name])
    if options.get("alibi_slopes"):
        options["alibi_slopes"] = rng.random((batch, heads)).astype(dtypes.cell)
    if options.get("sinks"):
        options["sinks"] = rng.standard_normal(heads).astype(dtypes.cell)
    if options.get("q_lengths"):
        options["q_lengths"] = rng.integers(0, rows, batch, endpoint=True)
    return arrays, options


def side_by_side(arrays: dict[str, Array], backend: str) -> tuple[Array, Array]:
    """Keys and values `[B, Hkv, longest, D]`, 0 past a sequence's length; on a GPU, all the table has room for."""
    lengths, table = arrays["kv_lengths"], arrays["block_table"]
    found = []
    for pages in (arrays["key_pages"], arrays["value_pages"]):
        most = int(lengths.max(initial=0)) if backend == "cpu" else table.shape[1] * pages.shape[1]
        rows = np.zeros((len(lengths), pages.shape[2], most, pages.shape[3]), pages.dtype)
        for b, n in enumerate(lengths):
            for j in range(n):
                rows[b, :, j] = pages[table[b, j // pages.shape[1]], j % pages.shape[1]]
        found.append(rows)
    return found[0], found[1]


def widened(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: widened(value) for key, value in tree.items()}
    return tree.astype(np.float64) if isinstance(tree, np.ndarray) and tree.dtype.kind not in "biu" else tree


@DTYPES
@pytest.mark.parametrize("name", OPTIONS)
@each_case
def test_equals_keys_side_by_side(
    ops: ModuleType, backend: str, case: tuple[Any, ...], name: str, dtypes: DTypes
) -> None:
    arrays, options = make(case, name, dtypes)
    out, lse = ops.attention_paged(**arrays, **options, return_lse=True)
    want = ops.scaled_dot_product_attention(
        arrays["query"], *side_by_side(arrays, backend), enable_gqa=True, kv_lengths=arrays["kv_lengths"],
        return_lse=True, **options)  # fmt: skip
    assert_bitwise_equal(out, want[0], "out")
    assert_bitwise_equal(lse, want[1], "lse")


@DTYPES
@pytest.mark.parametrize("name", ["plain", "everything"])
@each_case
def test_agrees_with_the_reference(
    ops: ModuleType, backend: str, case: tuple[Any, ...], name: str, dtypes: DTypes
) -> None:
    arrays, options = make(case, name, dtypes)
    out, lse = ops.attention_paged(**arrays, **options, return_lse=True)
    want = reference.attention_paged(**widened(arrays), **widened(options), return_lse=True)
    keys = tuple(a.astype(np.float64) for a in side_by_side(arrays, "cpu"))
    given = {**widened(options), "kv_lengths": arrays["kv_lengths"], "enable_gqa": True}
    on_tensor_cores = backend != "cpu" and dtypes is BFLOAT16
    query = widened(arrays["query"])
    bounds = attention_bounds((query, *keys), given, np.ones(out.shape), dtypes, on_tensor_cores)
    for got, wanted, what in ((out, want[0], "out"), (lse, want[1], "lse")):
        finite = np.where(np.isfinite(wanted), np.abs(wanted), 0)
        limit = finish(finite, bounds[what], dtypes, dtypes.x if what == "out" else dtypes.cell)
        assert_matches(got, wanted, limit, what)


@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_layouts_and_integers(ops: ModuleType, case: tuple[Any, ...]) -> None:
    """Pages with heads outside, a table of another type and with gaps, out=: the same bits."""
    arrays, options = make(case, "everything", FLOAT32)
    want = ops.attention_paged(**arrays, **options)
    heads_first = {
        name: np.ascontiguousarray(arrays[name].transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
        for name in ("key_pages", "value_pages")
    }
    wide = np.repeat(arrays["block_table"].astype(np.int64), 2, axis=1)[:, ::2]
    out = np.empty_like(want)
    changed = {**arrays, **heads_first, "block_table": wide, "kv_lengths": arrays["kv_lengths"].astype(np.uint16)}
    assert ops.attention_paged(**changed, **options, out=out) is out
    assert_bitwise_equal(out, want, "out")


def test_pages_may_be_shared(ops: ModuleType, backend: str) -> None:
    arrays, _ = make(CASES[1], "plain", FLOAT32)
    arrays["block_table"][1] = arrays["block_table"][0]
    want = ops.scaled_dot_product_attention(
        arrays["query"], *side_by_side(arrays, backend), enable_gqa=True, kv_lengths=arrays["kv_lengths"]
    )
    assert_bitwise_equal(ops.attention_paged(**arrays), want, "out")


@pytest.mark.parametrize("case", [CASES[1], CASES[4]], ids=str)
def test_threads(isa: str, case: tuple[Any, ...], threads: None) -> None:
    batch, heads, kv_heads, rows, *rest, lengths = case
    arrays, options = make((batch, 4 * heads, 4 * kv_heads, rows, *rest, lengths), "everything", FLOAT32)
    seqkern.set_num_threads(1)
    want = seqkern.attention_paged(**arrays, **options)
    for count in (2, 3, 7, 2):
        seqkern.set_num_threads(count)
        assert_bitwise_equal(seqkern.attention_paged(**arrays, **options), want, f"{count} threads")


@pytest.mark.parametrize("case", [CASES[1], CASES[4]], ids=str)
def test_failing_allocation(case: tuple[Any, ...]) -> None:
    """The nth allocation fails: MemoryError, and the next call is right."""
    arrays, options = make(case, "everything", FLOAT32)
    want = seqkern.attention_paged(**arrays, **options)
    failures = 0
    try:
        for nth in range(1, 21):
            _cpu.fail_allocation(nth)
            try:
                got = seqkern.attention_paged(**arrays, **options)
            except MemoryError:
                failures += 1
                _cpu.fail_allocation(0)
                got = seqkern.attention_paged(**arrays, **options)
            assert_bitwise_equal(got, want, f"after failure {nth}")
    finally:
        _cpu.fail_allocation(0)
    assert failures > 2


@pytest.mark.parametrize("side", ["start", "end"])
def test_guard_pages(backend: str, isa: str, request: pytest.FixtureRequest, side: str) -> None:
    if backend == "cuda":
        pytest.skip("the pages are the host's")
    kernels = isa or str(request.getfixturevalue("hostcuda").__file__)
    result = run_worker("paged_worker.py", kernels, side)
    assert result.returncode == 0 and "done" in result.stdout, result.stderr[-4000:]


FLOATS = np.zeros((4, 8, 2, 5), np.float32)
BAD = [
    ({"block_table": np.array([[0, 4], [1, 2]])}, ValueError, r"block_table must lie in \[0, pages\) = \[0, 4\)"),
    ({"block_table": np.array([[0, 1], [-1, 2]])}, ValueError, r"block_table must lie .* got -1 at \[1, 0\]"),
    ({"block_table": np.array([[0, -(2**63)], [1, 2]])}, ValueError, "block_table must lie"),
    ({"block_table": np.array([[0, 2**63], [1, 2]], np.uint64)}, ValueError, "block_table must lie"),
    ({"block_table": np.array([[0, 2**31], [1, 2]])}, ValueError, "block_table must lie"),
    ({"block_table": np.zeros((1, 2), int)}, ValueError, "block_table must be"),
    ({"block_table": np.zeros(2, int)}, ValueError, "block_table must be"),
    ({"block_table": np.zeros((2, 2))}, TypeError, "block_table must be an integer array"),
    ({"block_table": [[0, 1], [2, 3]]}, TypeError, "block_table must be a (NumPy|CUDA) array"),
    ({"block_table": np.zeros((2, 2), ">i4")}, TypeError, "block_table must be in native byte order"),
    ({"block_table": np.zeros((2, 1), int)}, ValueError, r"kv_lengths must lie in \[0, 8\], got 9"),
    ({"kv_lengths": np.array([17, 1])}, ValueError, r"kv_lengths must lie in \[0, 16\], got 17"),
    ({"kv_lengths": np.array([-1, 1])}, ValueError, "kv_lengths must lie"),
    ({"kv_lengths": np.array([1])}, ValueError, "kv_lengths must be"),
    ({"kv_lengths": np.array([1.0, 2.0])}, TypeError, "kv_lengths must be an integer array"),
    ({"kv_lengths": None}, TypeError, "kv_lengths must be a (NumPy|CUDA) array"),
    ({"q_lengths": np.array([1, 4])}, ValueError, r"q_lengths must lie in \[0, 3\]"),
    ({"query": np.zeros((2, 3, 3, 5), np.float32)}, ValueError, "multiple of the pages' heads"),
    ({"query": np.zeros((2, 2, 3, 4), np.float32)}, ValueError, "key_pages must be"),
    ({"query": np.zeros((2, 2, 5), np.float32)}, ValueError, "query must be"),
    ({"key_pages": FLOATS[:3]}, ValueError, "value_pages must be"),
    ({"value_pages": FLOATS[:, :7]}, ValueError, "value_pages must be"),
    ({"value_pages": FLOATS.astype(np.float64)}, TypeError, "value_pages must be float32"),
    ({"key_pages": FLOATS[0]}, ValueError, "key_pages must be"),
    ({"sinks": np.zeros(3, np.float32)}, ValueError, "sinks must be"),
    ({"alibi_slopes": np.zeros((3, 2), np.float32)}, ValueError, "alibi_slopes must be"),
    ({"causal": "left"}, ValueError, "causal must be"),
    ({"precision": "low"}, ValueError, "precision must be one of"),
    ({"out": np.zeros((2, 2, 3, 4), np.float32)}, ValueError, "out must be"),
    ({"out": FLOATS.reshape(-1)[:60].reshape(2, 2, 3, 5)}, ValueError, "out must not overlap"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(
    ops: ModuleType, backend: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    if backend != "cpu" and "must lie" in message:
        pytest.skip("a GPU moves pages and lengths into range: to refuse them, the host would have to wait for it")
    if backend == "cuda" and ("byte order" in message or "overlap" in message):
        pytest.skip("CuPy knows no other byte order, and here arrays are copied to it one by one")
    good: dict[str, Any] = {
        "query": np.zeros((2, 2, 3, 5), np.float32),
        "key_pages": FLOATS,
        "value_pages": FLOATS,
        "block_table": np.array([[0, 1], [2, 3]]),
        "kv_lengths": np.array([9, 16]),
    }
    ops.attention_paged(**good)
    with pytest.raises(error, match=message):
        ops.attention_paged(**good | change)


def test_a_table_of_any_width_costs_nothing(ops: ModuleType, backend: str) -> None:
    """2^40 pages for each sequence, broadcast from one number: only those in use are looked at. A GPU takes no such."""
    arrays, _ = make(CASES[0], "plain", FLOAT32)
    if backend == "cuda":
        pytest.skip("the table would be copied there")
    want = ops.attention_paged(**arrays)
    arrays["kv_lengths"] = np.minimum(arrays["kv_lengths"], 1)
    arrays["block_table"] = np.broadcast_to(arrays["block_table"][:1, :1], (3, 2**40))
    if backend == "cpu":
        assert_bitwise_equal(ops.attention_paged(**arrays)[0], want[0], "out")
        return
    with pytest.raises(ValueError, match=r"block_table must have room for fewer than 2\^31 keys"):
        ops.attention_paged(**arrays)
