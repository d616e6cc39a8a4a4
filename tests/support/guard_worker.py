"""Runs every function with every array next to an unmapped page; see test_memory.

usage: guard_worker.py ISA|MODULE end|start [plant]
MODULE: the path of a _hostcuda (tests/hostcuda), whose functions then run instead, at small sizes in float32 and
bfloat16. `plant` reads one element past an array first: the test of the test.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import seqkern
from hostcuda import build
from seqkern import _cpu
from support.calls import CELLS, LAYERS, PLAIN, Call, cell_calls, plain_calls, recurrent_calls
from support.cases import BFLOAT16, DTYPES, FLOAT32, random_array
from support.guard import GuardedAllocator

WIDTHS = (1, 5, 8, 17, 33)
SIZES = [(1, 1, 1), (3, 2, 5), (5, 16, 15), (2, 17, 33), (14, 7, 31), (33, 3, 9)]  # N, I, H


def calls() -> list[Call]:
    found = []
    for dtypes in DTYPES:
        for n, i, h in SIZES:
            for case in LAYERS:
                sized = replace(case, N=n, I=i, H=h, P=case.P and max(1, h - 2))
                found += recurrent_calls(sized, dtypes)
                found += recurrent_calls(replace(sized, reverse=True, biases=()), dtypes)
                if h >= 31:
                    for precision in ("high", "medium"):
                        found += recurrent_calls(replace(sized, precision=precision), dtypes)
            for case in CELLS:
                sized = replace(case, N=n, I=i, H=h, P=case.P and max(1, h - 2))
                found += cell_calls(sized, dtypes)
        if dtypes.name != "bfloat16_weights":
            for op in PLAIN:
                for width in WIDTHS:
                    length = {} if op == "max_pool2d" else {"L": width}
                    found += plain_calls(op, dtypes, I=width, C=2 * width, **length)
    return found


def fused_linear(rows: int, wide: int, out: int) -> None:
    """linear with an activation and a residual, and with int8 weights."""
    rng = np.random.default_rng(0)
    for dtypes in DTYPES:
        x, residual = random_array(rng, (rows, wide), dtypes.x), random_array(rng, (rows, out), dtypes.x)
        weight, bias = random_array(rng, (out, wide), dtypes.weight), random_array(rng, (out,), dtypes.bias)
        for activation in ("relu", "gelu"):
            options = {"activation": activation, "residual": residual}
            y, saved = seqkern.linear_forward(x, weight, bias, **options)
            seqkern.linear_backward(y, saved)
            if dtypes.x != np.float64:
                seqkern.linear_int8(x, *seqkern.quantize_int8(weight), bias, **options)


def attention(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Forward and backward with every array argument there is: B, Hq, Hkv, Lq, Lk, D, Dv."""
    batch, heads, kv_heads, queries, keys, dim, value_dim = shape
    rng = np.random.default_rng(0)
    sizes = ((heads, queries, dim), (kv_heads, keys, dim), (kv_heads, keys, value_dim))
    arrays = [random_array(rng, (batch, *size), dtype) for size in sizes]
    dout = random_array(rng, (batch, heads, queries, value_dim), dtype)
    extra = random_array(rng, (2, heads), np.float64 if dtype == np.float64 else np.float32)
    options = {"enable_gqa": True, "sinks": extra[0], "alibi_slopes": extra[1], "kv_lengths": np.full(batch, keys)}
    for mask in (random_array(rng, (heads, queries, keys), dtype), rng.random((queries, keys)) < 0.7):
        given = {"attn_mask": mask, "causal": "bottom_right", "dropout_p": 0.1, "dropout_seed": 3, **options}
        _, saved = seqkern.scaled_dot_product_attention_forward(*arrays, **given)
        seqkern.scaled_dot_product_attention_backward(dout, saved)
        if mask.dtype == bool:
            seqkern.scaled_dot_product_attention(*arrays, **given, return_lse=True, return_probs=True)


ATTENTION = [(1, 1, 1, 1, 1, 1, 1), (2, 4, 2, 3, 33, 8, 5), (1, 4, 2, 35, 65, 17, 33), (1, 2, 1, 64, 96, 64, 64)]
NO_CUDA_TWIN = ("linear", "conv1d", "conv2d", "max_pool2d", "batch_norm", "batch_norm in training")


def hostcuda_calls() -> list[Call]:
    cases = [replace(case, N=9, I=7, H=17, P=case.P and 15) for case in LAYERS]
    found = [call for case in cases for dtypes in (FLOAT32, BFLOAT16) for call in recurrent_calls(case, dtypes)]
    ops = [op for op in PLAIN if op not in NO_CUDA_TWIN]
    return found + [c for op in ops for dtypes in (FLOAT32, BFLOAT16) for c in plain_calls(op, dtypes, I=17, C=34)]


def main(isa: str, side: str, plant: bool) -> None:
    GuardedAllocator(end=side == "end").install()
    if isa.endswith(".so"):
        build.stand_below_ops(build.load(Path(isa)))
        for call in hostcuda_calls():
            call.invoke(seqkern, dict(call.arrays()))
        for shape in ATTENTION:
            attention(FLOAT32.x, shape)
            attention(BFLOAT16.x, shape)
        print("done", flush=True)
        os._exit(0)
    _cpu.set_isa(isa)
    if plant:
        array = np.zeros(3, np.float32)
        offset = 12 if side == "end" else -4
        ctypes.c_float.from_address(array.ctypes.data + offset).value  # noqa: B018
        return
    for call in calls():
        call.invoke(seqkern, dict(call.arrays()))
    for n, i, h in (*SIZES, (16, 33, 53), (53, 33, 16)):  # and the larger factor in place
        fused_linear(n, i, h)
    for shape in ATTENTION:
        for dtypes in DTYPES[:3]:
            attention(dtypes.x, shape)
    for size in range(40):
        for name in ("exp", "tanh", "sigmoid", "erf", "round_bf16"):
            _cpu.math_eval(name, np.zeros(size, np.float32))
    print("done", flush=True)
    os._exit(0)  # the handler's callbacks are Python and must not run once Python is torn down


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "plant" in sys.argv)
