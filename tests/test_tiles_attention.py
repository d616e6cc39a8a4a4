"""Attention in bf16 parts: within the bounds of the modes, for every tail, mask and value; see test_tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import seqkern
from seqkern import reference
from support.attention_bounds import attention_bounds
from support.cases import BFLOAT16, FLOAT32, DTypes
from support.compare import assert_bitwise_equal, assert_matches
from support.process import run_worker
from support.tolerance import finish
from test_attention import OPTIONS, make, run, widened
from test_tiles import counts, tiled  # noqa: F401 - fixtures; skips this module, too, where neither is there

MODES = {"highest": 0.0, "high": 3 * 2.0**-18, "medium": 2.0**-8}
each_mode = pytest.mark.parametrize("mode", MODES)
each_dtype = pytest.mark.parametrize("dtypes", [FLOAT32, BFLOAT16], ids=lambda d: d.name)

# B, Hq, Hkv, Lq, Lk, D, Dv
SHAPES = [
    (1, 2, 2, 48, 64, 64, 64),
    (2, 2, 1, 33, 129, 64, 33),  # row panels that span heads of a group
    (1, 1, 1, 65, 300, 67, 16),
    (1, 3, 3, 97, 257, 32, 70),
    (2, 4, 2, 20, 96, 128, 31),
    (1, 1, 1, 64, 700, 96, 128),
]


def check(shape: tuple[int, ...], name: str, dtypes: DTypes, mode: str) -> None:
    arrays, options, dout = make(shape, name, dtypes)
    mine = run(seqkern, arrays, options | {"precision": mode}, dout)
    exact = run(reference, widened(arrays), widened(options), widened(dout))
    split = 0.0 if dtypes is BFLOAT16 else MODES[mode]
    bounds = attention_bounds(widened(arrays), widened(options), widened(dout), dtypes, dtypes is BFLOAT16, split)
    for key in ("out", "lse", "dquery", "dkey", "dvalue"):
        want = exact[key]
        finite = np.abs(np.where(np.isfinite(want), want, 0))
        limit = finish(finite, bounds[key].reshape(want.shape), dtypes, dtypes.cell if key == "lse" else dtypes.x)
        assert_matches(mine[key], want, limit, f"{key} {shape} {name} {mode}")


@each_mode
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, ...], dtypes: DTypes, mode: str) -> None:
    check(shape, "plain", dtypes, mode)
    check(shape, "causal", dtypes, mode)


@each_dtype
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, dtypes: DTypes) -> None:
    for mode in ("high", "medium"):
        check((2, 4, 2, 49, 200, 64, 40), name, dtypes, mode)


@pytest.mark.parametrize("keys", [64, 65, 95, 96, 97, 127, 128, 129, 159, 160, 161, 255, 256, 257])
def test_every_tail(keys: int) -> None:
    check((1, 1, 1, 50, keys, 64, 32), "bottom_right", FLOAT32, "high")
    check((1, 1, 1, 50, keys, 64, 32), "window", BFLOAT16, "high")


# Products of q k' and of P v for 256 and more keys, and for fewer.
PRODUCTS = {
    ("float32", "highest"): (0, 0, 0),  # by FMA
    ("float32", "high"): (5, 3, 5),  # 64 terms of q k' are few, 256 keys many
    ("float32", "medium"): (2, 2, 2),
    ("bfloat16", "highest"): (1, 1, 1),
}


@pytest.mark.parametrize(("dtype", "mode"), PRODUCTS)
@pytest.mark.parametrize("keys", [256, 128])
def test_which_products_run(dtype: str, mode: str, keys: int, counts: Any) -> None:  # noqa: F811
    dtypes = BFLOAT16 if dtype == "bfloat16" else FLOAT32
    arrays, _, _ = make((1, 1, 1, 64, keys, 64, 64), "plain", dtypes)
    before = counts()
    seqkern.scaled_dot_product_attention(*arrays, precision=mode)
    dots, loaded, released = (now - then for now, then in zip(counts(), before, strict=True))
    scores, many, few = PRODUCTS[dtype, mode]
    tiles = 4 * (keys // 16) * 2  # of 16 rows by 16 keys by 32 terms
    assert dots == tiles * scores + tiles * (many if keys >= 256 else few)
    assert loaded == released
    assert (loaded > 0) == (dots > 0)


@pytest.mark.parametrize("sizes", [(5, 256, 64), (15, 256, 64), (64, 32, 64), (64, 256, 31)], ids=str)
def test_small_ones_stay_off_the_unit(sizes: tuple[int, ...], counts: Any) -> None:  # noqa: F811
    arrays, _, _ = make((1, 1, 1, *sizes, 64), "plain", FLOAT32)
    before = counts()
    seqkern.scaled_dot_product_attention(*arrays, precision="medium")
    assert counts() == before


@each_mode
@each_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**43, 3e38])
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_values_the_unit_gets_wrong(where: str, bad: float, dtypes: DTypes, mode: str) -> None:
    """Their head is as by FMA, to the bit; where they are masked nothing shows; other heads keep their bits."""
    arrays, _, _ = make((1, 2, 2, 50, 130, 64, 64), "plain", dtypes)
    named = dict(zip(("query", "key", "value"), arrays, strict=True))
    clean = seqkern.scaled_dot_product_attention(*named.values(), precision=mode)
    named[where] = named[where].copy()
    named[where][0, 1, 7] = bad
    got = seqkern.scaled_dot_product_attention(*named.values(), precision=mode)
    assert_bitwise_equal(got[:, 0], clean[:, 0], "the other head")
    by_fma, _ = seqkern.scaled_dot_product_attention(*named.values(), return_probs=True)
    assert_bitwise_equal(got[:, 1], by_fma[:, 1], "its own head")
    if where != "query":
        mask = np.ones((50, 130), bool)
        mask[:, 7] = False
        hidden = seqkern.scaled_dot_product_attention(*named.values(), mask, precision=mode)
        assert np.isfinite(hidden.astype(np.float64)).all()


@pytest.mark.parametrize("shape", [(1, 3, 3, 200, 300, 64, 64), (3, 3, 3, 70, 300, 64, 64)], ids=str)
@pytest.mark.parametrize("name", ["causal", "everything"])
def test_threads(shape: tuple[int, ...], name: str, threads: None) -> None:
    arrays, options, dout = make(shape, name, FLOAT32)
    options["precision"] = "high"
    seqkern.set_num_threads(1)
    want = run(seqkern, arrays, options, dout)
    for count in (2, 3, 7):
        seqkern.set_num_threads(count)
        for key, value in run(seqkern, arrays, options, dout).items():
            assert_bitwise_equal(value, want[key], f"{key} {count} threads")


def test_packed_sequences() -> None:
    """Sequence by sequence the bits of the padded form."""
    arrays, _, _ = make((1, 2, 2, 150, 260, 64, 64), "plain", FLOAT32)
    cu_q, cu_kv = np.array([0, 70, 150]), np.array([0, 150, 260])
    packed = [a[0].transpose(1, 0, 2) for a in arrays]
    out = seqkern.attention_varlen(*packed, cu_q, cu_kv, precision="medium", is_causal=True)
    for b in range(2):
        q, kv = slice(*cu_q[b : b + 2]), slice(*cu_kv[b : b + 2])
        alone = [a[:, :, s] for a, s in zip(arrays, (q, kv, kv), strict=True)]
        want = seqkern.scaled_dot_product_attention(*alone, precision="medium", is_causal=True)
        np.testing.assert_allclose(out[q].transpose(1, 0, 2), want[0], rtol=0, atol=2e-2)


@pytest.mark.parametrize("side", ["start", "end"])
def test_guard_pages(side: str, tiled: str) -> None:  # noqa: F811
    result = run_worker("tiles_worker.py", side, tiled, "attention")
    assert result.returncode == 0 and "done" in result.stdout, result.stderr[-4000:]
