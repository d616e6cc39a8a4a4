"""attention_varlen beyond what it shares with the padded form: masks, slopes per sequence, probabilities, heads."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from seqkern import reference
from support.cases import BFLOAT16, FLOAT32, FLOAT64, Array, DTypes, generator
from support.compare import assert_bitwise_equal, assert_matches

CU_Q, CU_KV = np.array([0, 3, 3, 40, 41]), np.array([0, 7, 9, 60, 60])
SEQUENCES, HEADS, KV_HEADS, DIM, VALUE_DIM, LONGEST_Q, LONGEST_KV = 4, 4, 2, 8, 12, 37, 51
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal sinks": {"causal": "bottom_right", "sinks": True},
    "slopes": {"alibi_slopes": True},
    "bool mask": {"attn_mask": (SEQUENCES, 1, LONGEST_Q, LONGEST_KV), "bool": True},
    "key mask": {"attn_mask": (SEQUENCES, 1, 1, LONGEST_KV), "bool": True},
    "full mask": {"attn_mask": (SEQUENCES, HEADS, LONGEST_Q, LONGEST_KV)},
    "head mask": {"attn_mask": (HEADS, LONGEST_Q, LONGEST_KV), "window": (9, 9)},
    "row mask": {"attn_mask": (LONGEST_Q, 1)},
    "everything": {
        "attn_mask": (1, HEADS, 1, LONGEST_KV), "causal": "bottom_right", "softcap": 2.0, "alibi_slopes": True,
        "sinks": True, "dropout_p": 0.3, "dropout_seed": 5,
    },
}  # fmt: skip
each_option = pytest.mark.parametrize("name", OPTIONS)
DTYPES = pytest.mark.parametrize("dtypes", [FLOAT32, FLOAT64, BFLOAT16], ids=lambda d: d.name)
# The sums are those of the padded form, whose derived bounds test_attention has: here a wrong index must show.
UNITS = {"float64": 1e-11, "float32": 1e-4, "bfloat16": 0.05}


def make(name: str, dtypes: DTypes) -> tuple[tuple[Array, ...], dict[str, Any], Array]:
    rng = generator("packed", name, dtypes.name)

    def normal(*sizes: int) -> Array:
        return rng.standard_normal(sizes).astype(dtypes.x)

    arrays = (normal(41, HEADS, DIM), normal(60, KV_HEADS, DIM), normal(60, KV_HEADS, VALUE_DIM))
    options = dict(OPTIONS[name])
    if "attn_mask" in options:
        mask = normal(*options["attn_mask"])
        options["attn_mask"] = mask.astype(np.float64) > -0.5 if options.pop("bool", False) else mask
    if options.get("alibi_slopes"):
        options["alibi_slopes"] = rng.random((SEQUENCES, HEADS)).astype(dtypes.cell)
    if options.get("sinks"):
        options["sinks"] = rng.standard_normal(HEADS).astype(dtypes.cell)
    return arrays, options, normal(41, HEADS, VALUE_DIM)


def wide(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: wide(value) for key, value in tree.items()}
    return tree.astype(np.float64) if isinstance(tree, np.ndarray) and tree.dtype.kind not in "biu" else tree


def run(module: ModuleType, arrays: Any, options: Any, dout: Array) -> dict[str, Array]:
    """Every result there is, by name."""
    given = {"return_lse": True, "return_probs": True, "enable_gqa": True}
    out, lse, probs = module.attention_varlen(*arrays, CU_Q, CU_KV, **options, **given)
    again, saved = module.attention_varlen_forward(*arrays, CU_Q, CU_KV, **options, enable_gqa=True)
    gradients = module.attention_varlen_backward(dout, saved)._asdict()
    results = {"out": out, "forward": again, "lse": lse, "probs": probs, **gradients}
    return {key: value for key, value in results.items() if value is not None}


@DTYPES
@each_option
def test_agrees_with_the_reference(ops: ModuleType, name: str, dtypes: DTypes) -> None:
    arrays, options, dout = make(name, dtypes)
    mine = run(ops, arrays, options, dout)
    exact = run(reference, tuple(map(wide, arrays)), wide(options), wide(dout))
    assert mine.keys() == exact.keys()
    for key, want in exact.items():
        assert mine[key].shape == want.shape, key
        assert mine[key].dtype == (dtypes.cell if key in ("lse", "dattn_mask", "dsinks") else dtypes.x), key
        size = np.abs(np.where(np.isfinite(want), want, 0))
        assert_matches(mine[key], want, UNITS[dtypes.name] * (1 + size), key)


@pytest.mark.parametrize("name", ["plain", "causal sinks", "slopes"])
def test_packed_sequences_of_several_tiles(ops: ModuleType, name: str) -> None:
    """In bfloat16 and as wide as tensor cores want it: 128 rows of one side by 64 of the other."""
    cu = np.array([0, 150, 150, 151, 271]), np.array([0, 70, 79, 300, 530])
    rng, options = generator("packed", name), dict(OPTIONS[name])
    sizes = ((271, HEADS, 24), (530, KV_HEADS, 24), (530, KV_HEADS, 16), (271, HEADS, 16))
    *arrays, dout = (rng.standard_normal(size).astype(BFLOAT16.x) for size in sizes)
    for key in ("alibi_slopes", "sinks"):
        if options.get(key):
            options[key] = rng.random(HEADS).astype(np.float32)
    _, saved = ops.attention_varlen_forward(*arrays, *cu, **options)
    _, kept = reference.attention_varlen_forward(*map(wide, arrays), *cu, **wide(options))
    mine, exact = ops.attention_varlen_backward(dout, saved), reference.attention_varlen_backward(wide(dout), kept)
    for field in ("dquery", "dkey", "dvalue"):
        want = getattr(exact, field)
        assert_matches(getattr(mine, field), want, UNITS["bfloat16"] * (1 + np.abs(want)), field)


@each_option
def test_any_number_of_threads(ops: ModuleType, name: str, threads: None) -> None:
    arrays, options, dout = make(name, FLOAT32)
    ops.set_num_threads(1)
    want = run(ops, arrays, options, dout)
    for count in (2, 3, 7):
        ops.set_num_threads(count)
        for key, value in run(ops, arrays, options, dout).items():
            assert_bitwise_equal(value, want[key], f"{key} {count} threads")


MASK = np.zeros((1, 1, 4, 3), np.float32)
BAD = [
    ({"enable_gqa": False}, ValueError, "key must have query's 4 heads when enable_gqa is False"),
    ({"attn_mask": MASK[..., :2]}, ValueError, r"attn_mask must be broadcastable to .* = \[2, 4, 4, 3\]"),
    ({"attn_mask": MASK[None]}, ValueError, "attn_mask must be broadcastable"),
    ({"attn_mask": MASK.astype(np.float64)}, TypeError, "attn_mask must be float32"),
    ({"attn_mask": MASK.tolist()}, TypeError, "attn_mask must be a NumPy array"),
    ({"attn_mask": MASK, "cu_seqlens_q": np.array([0, 2])}, ValueError, "attn_mask must be|cu_seqlens_q must"),
    ({"attn_mask": MASK, "cu_seqlens_q": np.array([0, 4, 2, 6])}, ValueError, "attn_mask must be|must not decrease"),
    ({"attn_mask": MASK, "cu_seqlens_q": np.array([0, 2**62, 6])}, ValueError, "cu_seqlens_q must lie|attn_mask must"),
    ({"alibi_slopes": np.zeros((3, 4), np.float32)}, ValueError, "alibi_slopes must be"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    import seqkern

    good: dict[str, Any] = {
        "query": np.zeros((6, 4, 5), np.float32),
        "key": np.zeros((5, 2, 5), np.float32),
        "value": np.zeros((5, 2, 5), np.float32),
        "cu_seqlens_q": np.array([0, 2, 6]),
        "cu_seqlens_kv": np.array([0, 3, 5]),
    }
    seqkern.attention_varlen(**good, attn_mask=MASK, enable_gqa=True)
    with pytest.raises(error, match=message):
        seqkern.attention_varlen(**good | change)
