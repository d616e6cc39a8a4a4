"""scaled_dot_product_attention and attention_varlen: every option against the reference in float64.

The bounds are analytic, element by element (support/attention_bounds.py): they do not move when a kernel improves.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.attention_bounds import attention_bounds
from support.cases import BFLOAT16, FLOAT32, FLOAT64, DTypes, generator
from support.compare import assert_bitwise_equal, assert_matches
from support.tolerance import finish

Array = np.ndarray
DTYPES = pytest.mark.parametrize("dtypes", [FLOAT32, FLOAT64, BFLOAT16], ids=lambda d: d.name)
BOTH = pytest.mark.parametrize("dtypes", [FLOAT32, FLOAT64], ids=lambda d: d.name)
ODD_HEADS = np.zeros((2, 3, 5, 3), np.float32)
NAMES = ("dquery", "dkey", "dvalue", "dattn_mask")

# B, Hq, Hkv, Lq, Lk, D, Dv
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (1, 2, 2, 5, 7, 3, 4),
    (2, 3, 3, 50, 50, 16, 16),
    (1, 2, 1, 13, 129, 8, 24),  # grouped
    (2, 4, 2, 49, 49, 32, 32),
    (1, 1, 1, 97, 300, 33, 17),
    (1, 6, 2, 40, 200, 5, 9),  # row tiles that span heads of a group
    (1, 2, 2, 1, 1100, 31, 65),  # decode, three pieces
    (2, 8, 2, 2, 600, 64, 64),  # decode, grouped: eight rows together
    (1, 1, 1, 192, 192, 256, 256),
    (0, 2, 2, 3, 3, 4, 4),
    (2, 0, 0, 3, 3, 4, 4),
    (2, 2, 2, 0, 3, 4, 4),
    (2, 2, 2, 3, 0, 4, 4),
]
# Tiles of tensor cores, 128 by 64: parts of them, several, grouped heads, one width and two, masks whose rows start at
# multiples of 16 bytes and some whose do not.
IN_BFLOAT16 = [
    (2, 4, 2, 49, 130, 32, 32), (2, 2, 2, 150, 296, 64, 64), (1, 4, 2, 200, 144, 72, 128),
    (2, 8, 2, 2, 300, 72, 128), (1, 5, 1, 1, 150, 64, 8),  # decoding
]  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "bottom_right": {"causal": "bottom_right"},
    "window": {"window": (3, 20)},
    "window causal": {"window": (17, None), "causal": "bottom_right"},
    "softcap": {"softcap": 1.5},
    "scale": {"scale": 0.7},
    "bool mask": {"attn_mask": "bool"},
    "float mask": {"attn_mask": "float"},
    "head mask": {"attn_mask": "head"},
    "key mask": {"attn_mask": "key"},
    "row mask": {"attn_mask": "row"},
    "shared mask": {"attn_mask": "shared", "causal": "bottom_right"},
    "alibi": {"alibi_slopes": True},
    "alibi causal": {"alibi_slopes": True, "causal": "bottom_right"},
    "sinks": {"sinks": True},
    "lengths": {"lengths": True},
    "lengths bottom_right": {"lengths": True, "causal": "bottom_right"},
    "dropout": {"dropout_p": 0.3, "dropout_seed": 2**40 + 3},
    "everything": {
        "attn_mask": "float", "causal": "bottom_right", "window": (40, None), "softcap": 2.0, "alibi_slopes": True,
        "sinks": True, "lengths": True, "dropout_p": 0.2, "dropout_seed": 5,
    },
}  # fmt: skip


def make(shape: tuple[int, ...], name: str, dtypes: DTypes) -> tuple[tuple[Array, ...], dict[str, Any], Array]:
    """query, key, value; the options with their arrays; dout. A few outliers; a row and a key fully masked."""
    batch, heads, kv_heads, queries, keys, dim, value_dim = shape
    rng = generator("attention", shape, name, dtypes.name)

    def normal(*sizes: int) -> Array:
        x = rng.standard_normal(sizes)
        return np.where(rng.random(sizes) < 0.02, 8 * x, x).astype(dtypes.x)

    arrays = (
        normal(batch, heads, queries, dim),
        normal(batch, kv_heads, keys, dim),
        normal(batch, kv_heads, keys, value_dim),
    )
    options = dict(OPTIONS[name])
    options["enable_gqa"] = heads != kv_heads
    full = (batch, heads, queries, keys)
    kind = options.get("attn_mask")
    if kind == "bool":
        options["attn_mask"] = rng.random(full) < 0.6
        options["attn_mask"][..., :1, :] = False
    elif kind:
        sizes = {"float": full, "head": (heads, queries, keys), "key": (batch, 1, 1, keys), "row": (queries, 1),
                 "shared": (queries, keys)}
        options["attn_mask"] = rng.standard_normal(sizes[kind]).astype(dtypes.x)
    if options.pop("lengths", False):
        options["q_lengths"] = rng.integers(0, queries, batch, endpoint=True)
        options["kv_lengths"] = rng.integers(0, keys, batch, endpoint=True)
    if options.get("alibi_slopes"):
        options["alibi_slopes"] = rng.random(heads).astype(dtypes.cell)
    if options.get("sinks"):
        options["sinks"] = rng.standard_normal(heads).astype(dtypes.cell)
    return arrays, options, normal(batch, heads, queries, value_dim)


def widened(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: widened(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(widened(value) for value in tree)
    return tree.astype(np.float64) if isinstance(tree, np.ndarray) and tree.dtype.kind not in "biu" else tree


def run(module: ModuleType, arrays: tuple[Array, ...], options: dict[str, Any], dout: Array) -> dict[str, Array]:
    """out, lse and every gradient there is, by name."""
    out, saved = module.scaled_dot_product_attention_forward(*arrays, **options)
    gradients = module.scaled_dot_product_attention_backward(dout, saved)
    results = {"out": out, "lse": np.asarray(saved.lse), **dict(zip(NAMES, gradients, strict=True))}
    results["dsinks"] = gradients.dsinks
    return {name: array for name, array in results.items() if array is not None}


def summed_to(bound: Array, shape: tuple[int, ...]) -> Array:
    """The bound of a sum over the dimensions that `shape` lacks."""
    while bound.ndim > len(shape):
        bound = bound.sum(0)
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and bound.shape[i] != 1)
    return bound.sum(axes, keepdims=True)


def on_tensor_cores(arrays: tuple[Array, ...]) -> bool:
    """Whether what is under test rounds probabilities to the storage type: as all GPUs do, and bf16 products."""
    from seqkern import _cpu
    from seqkern.ops import attention

    tensor = attention._cpu.__name__.endswith("cuda") or _cpu.active_isa() in ("avx512_bf16", "amx")
    return tensor and arrays[0].itemsize == 2


def check(ops: ModuleType, shape: tuple[int, ...], name: str, dtypes: DTypes) -> None:
    from seqkern import reference

    arrays, options, dout = make(shape, name, dtypes)
    mine = run(ops, arrays, options, dout)
    exact = run(reference, widened(arrays), widened(options), widened(dout))
    bounds = attention_bounds(widened(arrays), widened(options), widened(dout), dtypes, on_tensor_cores(arrays))
    assert mine.keys() == exact.keys()
    for key, want in exact.items():
        got, bound = mine[key], bounds[key]
        stored = key in ("out", "dquery", "dkey", "dvalue")
        assert got.dtype == (dtypes.x if stored else dtypes.cell), key
        if key in ("dattn_mask", "dsinks"):
            bound = summed_to(bound.swapaxes(-1, -2).sum(-2) if key == "dsinks" else bound, want.shape)
        finite = np.where(np.isfinite(want), want, 0)
        limit = finish(np.abs(finite), bound.reshape(want.shape), dtypes, dtypes.x if stored else dtypes.cell)
        assert_matches(got.reshape(want.shape), want, limit, f"{key} {shape} {name}")


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plain(ops: ModuleType, shape: tuple[int, ...], dtypes: DTypes) -> None:
    check(ops, shape, "plain", dtypes)


@BOTH
@pytest.mark.parametrize("name", list(OPTIONS)[1:])
@pytest.mark.parametrize("shape", [s for s in SHAPES if np.prod(s[2:5]) < 30_000], ids=str)
def test_options(ops: ModuleType, shape: tuple[int, ...], name: str, dtypes: DTypes) -> None:
    check(ops, shape, name, dtypes)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", IN_BFLOAT16, ids=str)
def test_options_in_bfloat16(ops: ModuleType, shape: tuple[int, ...], name: str) -> None:
    check(ops, shape, name, BFLOAT16)


@pytest.mark.parametrize(
    "name", ["plain", "causal", "bottom_right", "window", "window causal", "sinks", "lengths bottom_right"]
)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 2, 1, 150, 390, 64, 64), (1, 3, 1, 97, 260, 128, 128), (1, 2, 2, 200, 120, 40, 96),
        (1, 1, 1, 70, 2050, 48, 64),
    ],
)  # fmt: skip
def test_long_tiles_in_bfloat16(ops: ModuleType, backend: str, name: str, shape: tuple[int, ...]) -> None:
    """What a warpgroup takes at a time, where there is such a thing, and more."""
    if backend == "hostcuda":
        from seqkern.ops import attention

        attention._cpu.configure(deferred=True)
    check(ops, shape, name, BFLOAT16)


@pytest.mark.parametrize("dim", [*range(1, 20), 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 255, 256, 300, 513])
def test_every_head_dim(ops: ModuleType, dim: int) -> None:
    check(ops, (1, 2, 2, 15, 35, dim, max(257 - dim, 1) if dim > 1 else 1), "causal", FLOAT32)
    check(ops, (1, 2, 2, 1, 35, dim, dim), "plain", FLOAT32)


@pytest.mark.parametrize("keys", [*range(1, 36), 127, 128, 129, 511, 512, 513, 1025])
def test_every_tail(ops: ModuleType, keys: int) -> None:
    check(ops, (1, 1, 1, 11, keys, 8, 8), "bottom_right", FLOAT32)
    check(ops, (1, 1, 1, 2, keys, 8, 8), "window", FLOAT32)


def test_long_rows_keep_their_accuracy(ops: ModuleType) -> None:
    check(ops, (1, 1, 1, 3, 5000, 16, 16), "plain", FLOAT32)
    check(ops, (1, 1, 1, 20, 4100, 16, 16), "causal", FLOAT32)


@DTYPES
@pytest.mark.parametrize("name", ["plain", "causal", "bool mask", "sinks", "lengths"])
@pytest.mark.parametrize("shape", [(2, 3, 3, 50, 70, 16, 16), (1, 2, 2, 2, 70, 16, 16)], ids=str)
def test_lse_probabilities_and_out(ops: ModuleType, shape: tuple[int, ...], name: str, dtypes: DTypes) -> None:
    from seqkern import reference

    arrays, options, dout = make(shape, name, dtypes)
    given = {"return_lse": True, "return_probs": True}
    out, lse, probs = ops.scaled_dot_product_attention(*arrays, **options, **given)
    want = reference.scaled_dot_product_attention(*widened(arrays), **widened(options), **given)
    bounds = attention_bounds(widened(arrays), widened(options), widened(dout), dtypes)
    for got, wanted, what in zip((out, lse, probs), want, ("out", "lse", "probs"), strict=True):
        finite = np.where(np.isfinite(wanted), np.abs(wanted), 0)
        limit = finish(finite, bounds[what], dtypes, dtypes.cell if what == "lse" else dtypes.x)
        assert_matches(got, wanted, limit, what)
    buffer = np.empty_like(out)
    assert ops.scaled_dot_product_attention(*arrays, **options, out=buffer) is buffer
    assert_bitwise_equal(buffer, ops.scaled_dot_product_attention(*arrays, **options), "out=")


def assert_near(dirty: dict[str, Array], clean: dict[str, Array], dtypes: DTypes) -> None:
    """The same numbers, up to the order of the sums and, in bfloat16, where they were rounded."""
    for name, want in clean.items():
        exact = want.astype(np.float64)
        limit = (0.1 if dtypes.name == BFLOAT16.name else 1e-4) * (1 + np.abs(exact))
        assert_matches(dirty[name], exact, np.where(np.isfinite(exact), limit, 0), name)


@DTYPES
@pytest.mark.parametrize("rows", [2, 40, 150])
@pytest.mark.parametrize("kind", [bool, float])
def test_masked_numbers_never_leak(ops: ModuleType, kind: type, rows: int, dtypes: DTypes) -> None:
    """NaN and infinity at masked keys, values and rows change nothing; a live NaN shows."""
    arrays, _, dout = make((1, 2, 2, rows, 40, 16, 16), "plain", dtypes)
    mask = np.ones((rows, 40), bool)
    mask[:, 5] = mask[:, 39] = False
    mask[1] = False
    if kind is float:
        mask = np.where(mask, 0.0, -np.inf).astype(dtypes.x)
    clean = run(ops, arrays, {"attn_mask": mask}, dout)
    query, key, value = (a.copy() for a in arrays)
    for bad, at in ((np.nan, 5), (np.inf, 39)):
        key[:, :, at] = value[:, :, at] = bad
    query[:, :, 1] = np.nan
    upstream = dout.copy()
    upstream[:, :, 1] = np.nan
    dirty = run(ops, (query, key, value), {"attn_mask": mask}, upstream)
    assert_near(dirty, clean, dtypes)
    assert not clean["out"][:, :, 1].any() and np.all(clean["lse"][:, :, 1] == -np.inf)
    key[0, 0, 7] = np.nan
    live = ops.scaled_dot_product_attention(query, key, value, mask)
    assert np.isnan(live[0, 0, 0].astype(np.float64)).all()
    assert np.isfinite(live[0, 1, 0].astype(np.float64)).all()


@DTYPES
@pytest.mark.parametrize("window", [None, (30, None)])
def test_numbers_that_no_row_sees_never_leak(ops: ModuleType, window: Any, dtypes: DTypes) -> None:
    """NaN at keys past the diagonal of the last row, beside keys that rows see."""
    arrays, _, dout = make((1, 2, 2, 70, 200, 16, 16), "plain", dtypes)
    options = {"is_causal": True, "window": window}
    clean = run(ops, arrays, options, dout)
    query, key, value = (a.copy() for a in arrays)
    key[:, :, 70:] = value[:, :, 70:] = np.nan
    dirty = run(ops, (query, key, value), options, dout)
    assert_near(dirty, clean, dtypes)
    assert not dirty["dkey"][:, :, 70:].any() and not dirty["dvalue"][:, :, 70:].any()


@pytest.mark.parametrize("dtypes", [FLOAT32, BFLOAT16], ids=lambda d: d.name)
def test_what_comes_later_never_leaks(ops: ModuleType, dtypes: DTypes) -> None:
    (query, key, value), _, _ = make((1, 2, 2, 150, 150, 64, 64), "plain", dtypes)
    clean = ops.scaled_dot_product_attention(query, key, value, is_causal=True)
    value[:, :, 100], key[:, :, 120] = np.nan, np.inf
    dirty = ops.scaled_dot_product_attention(query, key, value, is_causal=True).astype(np.float64)
    assert_matches(dirty[:, :, :100], clean[:, :, :100].astype(np.float64), 0.03, "before")
    assert np.isnan(dirty[:, :, 100:]).all()


def test_padding_is_not_read_as_a_number(ops: ModuleType) -> None:
    arrays, options, dout = make((3, 2, 2, 30, 50, 16, 16), "lengths", FLOAT32)
    clean = run(ops, arrays, options, dout)
    query, key, value = (a.copy() for a in arrays)
    upstream = dout.copy()
    for b, (q, k) in enumerate(zip(options["q_lengths"], options["kv_lengths"], strict=True)):
        query[b, :, q:] = upstream[b, :, q:] = np.nan
        key[b, :, k:] = value[b, :, k:] = np.nan
    dirty = run(ops, (query, key, value), options, upstream)
    for name, want in clean.items():
        assert_bitwise_equal(dirty[name], want, name)


@pytest.mark.parametrize("name", ["causal", "float mask", "everything"])
@pytest.mark.parametrize("dtypes", [FLOAT32, BFLOAT16], ids=lambda d: d.name)
def test_strided_inputs(ops: ModuleType, name: str, dtypes: DTypes) -> None:
    """Heads that lie side by side, reversed rows, columns two apart: the same bits."""
    arrays, options, dout = make((2, 4, 4, 21, 33, 16, 16), name, dtypes)
    want = run(ops, arrays, options, dout)

    def side_by_side(a: Array) -> Array:
        return np.ascontiguousarray(a.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)

    def backwards(a: Array) -> Array:
        return np.ascontiguousarray(a[:, :, ::-1])[:, :, ::-1]

    def spread(a: Array) -> Array:
        wide = np.empty((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
        wide[..., ::2] = a
        return wide[..., ::2]

    for layout in (side_by_side, backwards, spread):
        got = run(ops, tuple(map(layout, arrays)), options, layout(dout))
        for key, value in want.items():
            assert_bitwise_equal(got[key], value, f"{key} {layout.__name__}")


@pytest.mark.parametrize("shape", [(3, 3, 3, 40, 300, 16, 16), (1, 4, 2, 200, 200, 16, 16), (1, 4, 1, 1, 2000, 16, 16)])
@pytest.mark.parametrize("name", ["causal", "head mask", "everything"])
def test_threads_and_repeats_give_the_same_bits(
    ops: ModuleType, shape: tuple[int, ...], name: str, threads: None
) -> None:
    arrays, options, dout = make(shape, name, FLOAT32)
    ops.set_num_threads(1)
    want = run(ops, arrays, options, dout)
    for count in (2, 3, 7, 16, 2, 2):
        ops.set_num_threads(count)
        for key, value in run(ops, arrays, options, dout).items():
            assert_bitwise_equal(value, want[key], f"{key} {count} threads")


@BOTH
@pytest.mark.parametrize("name", ["plain", "causal", "bottom_right", "window", "softcap", "alibi", "sinks", "dropout"])
def test_packed_sequences(ops: ModuleType, name: str, dtypes: DTypes) -> None:
    from seqkern import reference

    rng = generator("varlen", name, dtypes.name)
    cu_q, cu_kv = np.array([0, 3, 3, 40, 41]), np.array([0, 7, 9, 60, 60])
    heads, kv_heads, dim, value_dim = 4, 2, 8, 12

    def normal(*sizes: int) -> Array:
        return rng.standard_normal(sizes).astype(dtypes.x)

    arrays = (normal(41, heads, dim), normal(60, kv_heads, dim), normal(60, kv_heads, value_dim), cu_q, cu_kv)
    dout = normal(41, heads, value_dim)
    options = dict(OPTIONS[name])
    if name == "alibi":
        options["alibi_slopes"] = rng.random(heads).astype(dtypes.cell)
    if name == "sinks":
        options["sinks"] = rng.standard_normal(heads).astype(dtypes.cell)

    def both(module: ModuleType, arrays: Any, options: Any, dout: Array, **more: Any) -> dict[str, Array]:
        out, saved = module.attention_varlen_forward(*arrays, **options, **more)
        gradients = module.attention_varlen_backward(dout, saved)
        named = {key: getattr(gradients, key) for key in (*NAMES[:3], "dsinks")}
        results = {"out": out, "lse": saved.lse, **named}
        return {key: value for key, value in results.items() if value is not None}

    mine = both(ops, arrays, options, dout)
    exact = both(reference, widened(arrays), widened(options), widened(dout), enable_gqa=True)
    for key, want in exact.items():
        unit = 1e-12 if dtypes.cell == np.float64 else 1e-4  # the sums are those of the padded form, bounded above
        assert_matches(mine[key], want, unit * (1 + np.abs(np.where(np.isfinite(want), want, 0))), key)
    for b in range(4):  # and bit for bit the padded form, sequence by sequence
        q, kv = slice(*cu_q[b : b + 2]), slice(*cu_kv[b : b + 2])
        if name != "dropout" and q.stop - q.start > 8:
            alone = [a[s].transpose(1, 0, 2)[None] for a, s in zip(arrays[:3], (q, kv, kv), strict=True)]
            padded = ops.scaled_dot_product_attention(*alone, enable_gqa=True, **options)
            assert_bitwise_equal(mine["out"][q], np.ascontiguousarray(padded[0].transpose(1, 0, 2)), "padded")


def test_worked_example(ops: ModuleType) -> None:
    """The lecture's weights times values, to two decimals."""
    weights = np.array([[0.50, 0.20, 0.30], [0.12, 0.45, 0.43], [0.15, 0.42, 0.43]])
    values = np.array([[0.50, -0.87], [-0.70, 0.70], [0.81, 0.59]])
    out = ops.scaled_dot_product_attention(np.log(weights), np.eye(3), values, scale=1.0)
    assert np.abs(out - [[0.35, -0.12], [0.10, 0.46], [0.13, 0.42]]).max() < 0.01  # the weights are rounded too


def test_memory_grows_with_the_length_only(ops: ModuleType) -> None:
    """At 32,768 tokens the scores alone would take 4 GiB."""
    import resource

    q = np.ones((1, 1, 32768, 8), np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ops.scaled_dot_product_attention(q, q, q, window=(64, 0))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"key": np.zeros((2, 3, 5, 3), np.float32)}, ValueError, "key must have the leading dimensions"),
        ({"key": np.zeros((2, 4, 5, 4), np.float32)}, ValueError, "key must be"),
        ({"value": np.zeros((2, 4, 6, 3), np.float32)}, ValueError, "value must be"),
        ({"key": np.zeros((2, 4, 5, 3), np.float64)}, TypeError, "key must be float32"),
        ({"query": np.zeros((2, 4, 7, 3), ">f4")}, TypeError, "native byte order"),
        ({"query": [[1.0]]}, TypeError, "query must be a (NumPy|CUDA) array"),
        ({"query": np.zeros(3, np.float32)}, ValueError, "query must be"),
        ({"attn_mask": np.zeros((7, 6), np.float32)}, ValueError, "attn_mask must be broadcastable"),
        ({"attn_mask": np.zeros((7, 5), np.float64)}, TypeError, "attn_mask must be float32"),
        ({"attn_mask": np.zeros((7, 5), np.int32)}, TypeError, "attn_mask must be float32"),
        ({"key": ODD_HEADS, "value": ODD_HEADS, "enable_gqa": True}, ValueError, "multiple of the key's heads"),
        ({"causal": "left"}, ValueError, "causal must be"),
        ({"window": 3}, TypeError, "window must be a tuple"),
        ({"window": (-2, 0)}, ValueError, "window must be"),
        ({"dropout_p": 1.5}, ValueError, "dropout_p must lie in"),
        ({"dropout_p": 0.5}, ValueError, "dropout_seed must be an integer"),
        ({"scale": float("nan")}, ValueError, "scale must lie in"),
        ({"softcap": -1.0}, ValueError, "softcap must lie in"),
        ({"precision": "low"}, ValueError, "precision must be one of"),
        ({"sinks": np.zeros(3, np.float32)}, ValueError, "sinks must be"),
        ({"alibi_slopes": np.zeros((3, 4), np.float32)}, ValueError, "alibi_slopes must be"),
        ({"q_lengths": np.array([1, 8])}, ValueError, r"q_lengths must lie in \[0, 7\]"),
        ({"kv_lengths": np.array([-1, 2])}, ValueError, r"kv_lengths must lie in \[0, 5\]"),
        ({"kv_lengths": np.array([1.0, 2.0])}, TypeError, "kv_lengths must be an integer array"),
        ({"out": np.zeros((2, 4, 7, 2), np.float32)}, ValueError, "out must be"),
    ],
)
def test_bad_input(
    ops: ModuleType, backend: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    if backend != "cpu" and "_lengths must lie in" in message:
        pytest.skip("a GPU moves a length into range: to refuse it, the host would have to wait for it")
    if backend == "cuda" and "byte order" in message:
        pytest.skip("CuPy knows no other byte order")
    good: dict[str, Any] = {
        "query": np.zeros((2, 4, 7, 3), np.float32),
        "key": np.zeros((2, 4, 5, 3), np.float32),
        "value": np.zeros((2, 4, 5, 3), np.float32),
    }
    ops.scaled_dot_product_attention(**good)
    with pytest.raises(error, match=message):
        ops.scaled_dot_product_attention(**good | change)


@pytest.mark.parametrize(
    ("cu_q", "cu_kv", "message"),
    [
        ([0, 5, 3, 7], [0, 1, 2, 5], "cu_seqlens_q must not decrease"),
        ([0, 5, 9], [0, 1, 5], "cu_seqlens_q must (lie in|start with 0 and end with)"),
        ([0, 5, 7], [0, 1, 4], "cu_seqlens_kv must start with 0 and end with"),
        ([1, 5, 7], [0, 1, 5], "cu_seqlens_q must start with 0"),
        ([0, 5, 7], [0, 5], "cu_seqlens_kv must be"),
        ([], [0, 5], "cu_seqlens_q must be"),
    ],
)
def test_bad_offsets(ops: ModuleType, cu_q: list[int], cu_kv: list[int], message: str) -> None:
    query, key = np.zeros((7, 2, 3), np.float32), np.zeros((5, 2, 3), np.float32)
    with pytest.raises(ValueError, match=message):
        ops.attention_varlen(query, key, key, np.array(cu_q, np.int64), np.array(cu_kv, np.int64))


def test_saved_of_another_op_is_refused(ops: ModuleType) -> None:
    with pytest.raises(TypeError, match="saved must be the ScaledDotProductAttentionSaved"):
        ops.scaled_dot_product_attention_backward(None, ())


@pytest.mark.torch
@pytest.mark.parametrize("masked", [None, "bool", "float", "causal"])
def test_agrees_with_torch(ops: ModuleType, masked: str | None) -> None:
    import torch

    arrays, _, dout = make((2, 3, 3, 20, 20, 16, 16), "plain", FLOAT64)
    rng = generator("torch mask")
    mask = {"bool": rng.random((20, 20)) < 0.7, "float": rng.standard_normal((3, 20, 20))}.get(masked or "")
    leaves = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *leaves, attn_mask=None if mask is None else torch.from_numpy(mask), is_causal=masked == "causal"
    )
    theirs.backward(torch.from_numpy(dout))
    mine = run(ops, arrays, {"attn_mask": mask, "is_causal": masked == "causal"}, dout)
    for name, want in zip(("out", *NAMES[:3]), (theirs.detach(), *(leaf.grad for leaf in leaves)), strict=True):
        assert want is not None
        assert_matches(mine[name], want.numpy(), 1e-12 * (1 + np.abs(want.numpy())), name)


def test_a_row_that_sees_only_its_sink_takes_no_nan_from_dout(ops: ModuleType) -> None:
    ones = np.ones((1, 1, 2, 4))
    mask, dout = np.array([[True, True], [False, False]]), ones.copy()
    _, saved = ops.scaled_dot_product_attention_forward(ones, ones, ones, mask, sinks=np.zeros(1))
    clean = ops.scaled_dot_product_attention_backward(dout, saved)
    dout[0, 0, 1] = np.nan
    dirty = ops.scaled_dot_product_attention_backward(dout, saved)
    assert_bitwise_equal(dirty.dsinks, clean.dsinks, "dsinks")
    assert_bitwise_equal(dirty.dkey, clean.dkey, "dkey")
