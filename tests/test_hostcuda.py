"""The CUDA kernels on the host (tests/hostcuda): nothing depends on who runs first, and planted defects show.

A planted defect is a copy of the kernels' text with a few words changed. It counts as caught when, in some thread
order and copy mode, the runtime refuses the launch or the result differs from that of the text as it is.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hostcuda import build
from seqkern import selftest
from support.cases import BFLOAT16, DTYPES, DTypes, Recurrent, make_arrays, make_gradients
from support.compare import assert_bitwise_equal
from support.oracle import run
from support.process import run_worker
from support.recurrent_suite import check_backward, check_forward

CONFIGURATIONS = [
    {"order": order, "deferred": deferred}
    for order, deferred in product(("forward", "reverse", "random"), (False, True))
]
TEAMS = {"order": "random", "deferred": True, "max_cluster": 1, "max_together": 64}
CASES = [
    Recurrent("rnn", N=3, H=33),
    Recurrent("lstm", N=9, H=33, lengths="ragged"),
    Recurrent("lstm", H=35, P=20, peephole=True),
    Recurrent("gru", H=33, reverse=True),
    Recurrent("gru", N=9, H=33, reset_after=False),
]


def results(module: ModuleType, case: Recurrent, dtypes: DTypes, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """Outputs and gradients of a recurrent layer on `module`."""
    import seqkern

    with monkeypatch.context() as patch:
        build.stand_below_ops(module, patch.setattr)
        return run(seqkern, case, make_arrays(case, dtypes), make_gradients(case, dtypes))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")
def test_no_order_changes_a_bit(
    hostcuda: ModuleType, case: Recurrent, dtype: DTypes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thread orders, eager and deferred copies: the same bits, in clusters and alone, on chip and off."""
    want: tuple[Any, ...] | None = None
    for max_cluster, max_shared in ((8, 227 * 1024), (1, 163 * 1024), (4, 2 * 1024)):
        if dtype.x == BFLOAT16.x:  # on tensor cores the order of sums is that of the device's blocks
            want = None
        for configuration in CONFIGURATIONS:
            hostcuda.configure(**configuration, max_cluster=max_cluster, max_shared=max_shared)
            got = results(hostcuda, case, dtype, monkeypatch)
            want = want or got
            assert_bitwise_equal(got, want, f"{configuration} {max_cluster} {max_shared}")


@pytest.mark.parametrize(
    "max_cluster, max_together", [(16, 0), (4, 0), (1, 64), (1, 10)], ids=["16", "4", "teams", "small teams"]
)
@pytest.mark.parametrize(
    "case",
    [
        Recurrent("lstm", T=3, N=9, I=40, H=200, peephole=True),
        Recurrent("gru", N=3, H=203, lengths="ragged", reverse=True),
        Recurrent("rnn", T=3, N=9, H=520),
    ],
    ids=lambda case: f"{case.op}-{case}",
)
def test_tensor_cores(
    hostcuda: ModuleType, case: Recurrent, max_cluster: int, max_together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters as large as a device may have them, several tiles a warp, weights on chip and off; teams of blocks."""
    import seqkern

    build.stand_below_ops(hostcuda, monkeypatch.setattr)
    for max_shared in (227 * 1024, 80 * 1024):
        device = {"max_cluster": max_cluster, "max_shared": max_shared, "max_together": max_together}
        hostcuda.configure(order="random", deferred=True, **device)
        check_forward(seqkern, case, BFLOAT16)
        check_backward(seqkern, case, BFLOAT16)


def attention_results(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, ...]]:
    """Prefill and decode, forward and backward, with a mask whose gradient is summed over heads and rows; and
    on tensor cores, from addresses that are no multiples of 16 too; by warpgroups."""
    import seqkern

    rng = np.random.default_rng(0)
    for queries in (40, 2):
        arrays = [rng.standard_normal((1, h, n, 72), np.float32) for h, n in ((4, queries), (2, 300), (2, 300))]
        mask = rng.standard_normal((1, 300), np.float32)
        with monkeypatch.context() as patch:
            build.stand_below_ops(module, patch.setattr)
            out, saved = seqkern.scaled_dot_product_attention_forward(
                *arrays, mask, enable_gqa=True, causal="bottom_right", sinks=mask[0, :4]
            )
            gradients = seqkern.scaled_dot_product_attention_backward(out, saved)
        yield out, saved.stats, *gradients, gradients.dsinks  # outside: the caller may patch between two results
    for offset in (0, 1):
        flat = (rng.standard_normal(2 * 150 * 72 + offset, np.float32).astype(BFLOAT16.x) for _ in range(3))
        query, key, value = (x[offset:].reshape(1, 2, 150, 72) for x in flat)
        with monkeypatch.context() as patch:
            build.stand_below_ops(module, patch.setattr)
            out, saved = seqkern.scaled_dot_product_attention_forward(query, key, value)
            soft = seqkern.scaled_dot_product_attention(query, key, value, softcap=30.0)  # a warpgroup has none
            gradients = seqkern.scaled_dot_product_attention_backward(query, saved)
            few = query[:, :, :2], key, value
            few = seqkern.scaled_dot_product_attention(*few, causal="bottom_right", window=(99, 0))
        yield out, soft, few, *gradients
    query, key, value = (rng.standard_normal((1, 1, n, 64), np.float32).astype(BFLOAT16.x) for n in (70, 640, 640))
    with monkeypatch.context() as patch:
        build.stand_below_ops(module, patch.setattr)
        out = seqkern.scaled_dot_product_attention(query, key, value)
        few = seqkern.scaled_dot_product_attention(query[:, :, :2], key, value)
        pages = [x.reshape(40, 16, 1, 64) for x in (key, value)]
        table = rng.permutation(40).reshape(1, 40), np.array([635])
        paged = [seqkern.attention_paged(query[:, :, :n], *pages, *table) for n in (2, 40)]
        capped, saved = seqkern.scaled_dot_product_attention_forward(query, key, value, softcap=2.0)
        gradients = list(seqkern.scaled_dot_product_attention_backward(capped, saved))
        heads = np.concatenate([query, capped, out, query[:, :, ::-1]], axis=1)
        mask = rng.standard_normal((70, 640), np.float32).astype(BFLOAT16.x)
        _, saved = seqkern.scaled_dot_product_attention_forward(heads, key, value, mask, enable_gqa=True)
        gradients += seqkern.scaled_dot_product_attention_backward(heads, saved)
    yield out, few, *paged, capped, *gradients


def test_no_order_changes_a_bit_of_attention(hostcuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    want = None
    for configuration in CONFIGURATIONS:
        hostcuda.configure(**configuration)
        got = list(attention_results(hostcuda, monkeypatch))
        want = want or got
        for mine, first in zip(got, want, strict=True):
            assert_bitwise_equal(mine, first, str(configuration))


@pytest.mark.parametrize("side", ["start", "end"])
def test_guard_pages(hostcuda: ModuleType, side: str) -> None:
    """Every array flush against an unmapped page."""
    result = run_worker("guard_worker.py", str(hostcuda.__file__), side)
    assert result.returncode == 0 and "done" in result.stdout, result.stderr[-4000:]


@pytest.mark.parametrize("kernel", ["layer_norm", "rms_norm", "softmax", "log_softmax", "cross_entropy", "embedding"])
def test_the_self_test(hostcuda: ModuleType, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases of `python -m seqkern selftest`, forward and backward, in every dtype."""
    build.stand_below_ops(hostcuda, monkeypatch.setattr)
    count = 0
    for case in selftest.REGISTRY[kernel](kernel, False):
        for dtype in case.dtypes:
            hostcuda.configure(**CONFIGURATIONS[count % len(CONFIGURATIONS)])
            result = selftest.check(kernel, case, dtype)
            assert result.ok, result
            count += 1
    assert count


class Defect(NamedTuple):
    """A file, its text, and what stands there instead; the kernel that is built from it."""

    name: str
    file: str
    old: str
    new: str
    kernel: str = "src/kernels/rnn_cuda.cu"

    def __str__(self) -> str:
        return self.name


GEMM, LAYER = "src/cuda/gemm.cuh", "src/kernels/layer.cuh"
FORWARD = "src/kernels/layer_forward.cuh"
GRU, GEMM_MMA = "src/kernels/gru_cuda.cu", "src/cuda/gemm_mma.cuh"
STEPS, BACK_STEPS, TEAM = (f"src/kernels/layer_{name}_mma.cuh" for name in ("forward", "backward", "team"))
EMBEDDING, SOFTMAX = "src/kernels/embedding_cuda.cu", "src/kernels/softmax_cuda.cu"
TILE, FLASH, SCORE, MMA, DECODE, STREAM, PAGES, FEED, WGMMA = (
    f"src/kernels/attention_{name}"
    for name in ("tile.cuh", "cuda.cu", "score.cuh", "mma.cuh", "decode.cuh", "stream.cuh", "pages.cuh", "feed.cuh",
                 "wgmma.cuh")
)
BACKWARD, GRADIENT, GROUPS = (f"src/kernels/attention_backward_{name}" for name in ("cuda.cu", "mma.cuh", "wgmma.cuh"))
PIECES, PRODUCTS = (f"src/kernels/attention_gradient{name}.cuh" for name in ("", "_products"))
DEFECTS = [
    Defect("barrier missing before use", GEMM, "&b[0]);\n    sync_block();", "&b[0]);"),
    Defect("barrier missing before overwrite", GEMM, "    sync_block();\n  }\n  for", "  }\n  for"),
    Defect("barrier missing in a reduction", "src/cuda/reduce.cuh",
           "parts[warp_id()] = v;\n  sync_block();", "parts[warp_id()] = v;", SOFTMAX),
    Defect("copy wait too lax", LAYER, "copy_wait<0>();", "copy_wait<1>();"),
    Defect("static shared overrun", GEMM, "SHARED(A, b, kDepth * kPitch)", "SHARED(A, b, kDepth * kTile)"),
    Defect("dynamic shared overrun", FORWARD, "ceil_div(H, cluster) * G * S", "H / cluster * G * S"),
    Defect("divergent full-mask shuffle", FORWARD,
           "      row_products(rows, state.buffer(now), S, h);\n      if (!there) return;",
           "      if (!there) return;\n      row_products(rows, state.buffer(now), S, h);"),
    Defect("stage overwritten before it is read", LAYER, "return data + i * kRows * width;", "return data + 0 * i;"),
    Defect("consumer ignores full", LAYER, "mbarrier_wait(full + i, int(use & 1))", "(void)use"),
    Defect("consumer waits for the wrong phase", LAYER, "int(use & 1)", "int(~use & 1)"),
    Defect("too many bytes expected", LAYER, "bytes = int(rows * columns", "bytes = 4 + int(rows * columns"),
    Defect("too few bytes expected", LAYER, "bytes = int(rows * columns", "bytes = -4 + int(rows * columns"),
    Defect("barrier count off by one", LAYER, "mbarrier_init(full + i, 1)", "mbarrier_init(full + i, 2)"),
    Defect("blocks of a cluster race", FORWARD, "    copies_arrived();\n    sync_cluster();", "    copies_arrived();"),
    Defect("products: copy wait too lax", GEMM_MMA, "copy_wait<kMmaStages - 2>", "copy_wait<kMmaStages - 1>", GRU),
    Defect("products: barrier missing before use", GEMM_MMA, "- 2>();\n    sync_block();", "- 2>();", GRU),
    Defect("products: not transposed", GEMM_MMA, "else load_matrices<true>(b,", "else load_matrices(b,", GRU),
    Defect("steps: consumer ignores full", STEPS, "mbarrier_wait(full + (s & 1), int((s - 1) / 2 & 1));", "", GRU),
    Defect("steps: too few bytes expected", STEPS, "* kCells * 64;", "* kCells * 64 - 8;", GRU),
    Defect("steps: stage overwritten before it is read", STEPS,
           "words + (s & 1) * groups", "words + 0 * s * groups", GRU),
    Defect("steps: wrong fragment row", "src/kernels/layer_mma.cuh", "r / 8 * 2; }", "(1 - r / 8) * 2; }", GRU),
    Defect("teams: words read before their flags", TEAM, "if (!ballot(!all)) return;", "return;", GRU),
    Defect("teams: sums read too early", TEAM, "    sync_block();\n    if (finishes)", "    if (finishes)", GRU),
    Defect("backward steps: gradients overwritten before they are read", BACK_STEPS,
           "words + (i & 1) * kParts", "words + 0 * i * kParts", GRU),
    Defect("backward steps: consumer waits for the wrong phase", BACK_STEPS,
           "int(i / 2 & 1)", "int(~(i / 2) & 1)", GRU),
    Defect("attention: barrier missing before use", TILE,
           "[&](int r, int k) -> A& { return right[r * kRightPitch + k]; });\n      sync();\n      for",
           "[&](int r, int k) -> A& { return right[r * kRightPitch + k]; });\n      for", FLASH),
    Defect("attention: barrier missing before overwrite", TILE, "d += kSide) {\n      sync();", "d += kSide) {", FLASH),
    Defect("attention: weights overwritten before they are read", TILE, "    sync_warp();  // what", "    // what",
           BACKWARD),
    Defect("gradients: stage overwritten before it is read", GRADIENT, "if (head < end) fetch(next);",
           "if (head < end) fetch(stage);", BACKWARD),
    Defect("gradients: barrier missing before use", GRADIENT,
           "sync_block();\n    if (kFull) {", "if (kFull) {", BACKWARD),
    Defect("gradients: copy wait too lax", GRADIENT,
           "copy_wait<0>();\n    sync_block();\n    int at", "copy_wait<1>();\n    sync_block();\n    int at",
           BACKWARD),
    Defect("gradients: weights not transposed", PRODUCTS, "load_matrices<true>(b, walked", "load_matrices(b, walked",
           BACKWARD),
    Defect("gradients: a warpgroup waits too little", GROUPS, "== 128 ? 1 : 0", "== 128 ? 2 : 1", BACKWARD),
    Defect("gradients: powers of scores under way", GROUPS, "group_wait<1>(s)", "group_wait<2>(s)", BACKWARD),
    Defect("gradients: stage released early", GROUPS, "mbarrier_wait(&walked.full[at.stage], at.parity);",
           "mbarrier_wait(&walked.full[at.stage], at.parity), release(at.stage);", BACKWARD),
    Defect("gradients: consumer ignores full", GROUPS, "mbarrier_wait(&walked.full[at.stage], at.parity);", "(void)at;",
           BACKWARD),
    Defect("gradients: feeder ignores free", GROUPS, "if (!mbarrier_test(free, ring.parity ^ 1))",
           "if (ring.parity < 0)", BACKWARD),
    Defect("gradients: told too early", GROUPS, "copy_wait<1>();", "copy_wait<2>();", BACKWARD),
    Defect("gradients: barrier count off by one", GROUPS, "&free[i], 32 * kG", "&free[i], 33 * kG",
           BACKWARD),
    Defect("gradients: mask of other keys", GROUPS, "warp_id() * 2 + lane / 8 % 2", "warp_id() + lane / 8 % 2",
           BACKWARD),
    Defect("gradients: terms of other rows", GROUPS, "values)[n * 4 +", "values)[n * 2 +", BACKWARD),
    Defect("gradients: sheets of an operand too close", PIECES, "kRows * 128", "kRows * 64", BACKWARD),
    Defect("gradients: dynamic shared overrun", PIECES, "kStages * (2 * k", "kStages * (1 * k", BACKWARD),
    Defect("wrong fragment register order", MMA, "{b[2], b[3]});\n      }\n    }\n  }\n\n  // Products",
           "{b[3], b[2]});\n      }\n    }\n  }\n\n  // Products", FLASH),
    Defect("wrong fragment row", MMA, "lane % 8 + lane / 16 * 8", "lane % 16", FLASH),
    Defect("not transposed", MMA, "load_matrices<true>", "load_matrices", FLASH),
    Defect("tensor cores: copy wait too lax", MMA, "copy_wait<1>();  // V", "copy_wait<2>();  // V", FLASH),
    Defect("tensor cores: stage released early", MMA, "walk.scores(s);\n    sync_block();", "walk.scores(s);", FLASH),
    Defect("tensor cores: barrier missing before use", MMA, "// Q and K\n    sync_block();", "// Q and K", FLASH),
    Defect("tensor cores: dynamic shared overrun", MMA, "3 * 64 * kWidth", "3 * 63 * kWidth", FLASH),
    Defect("tensor cores: misaligned vector access", SCORE, "uintptr_t(data) % 16", "uintptr_t(data) % 2", FLASH),
    Defect("attention: static shared overrun", FLASH, "(A, right, kSide * k", "(A, right, (kSide - 1) * k", FLASH),
    Defect("attention: divergent full-mask shuffle", DECODE, "if (i >= pieces) return;",
           "if (i >= pieces || lane_id() == 31) return;", FLASH),
    Defect("decode: keys of the next piece", STREAM, "left >= kKeys && row.low", "row.low", FLASH),
    Defect("decode: factors of other rows", STREAM, "shuffle(factor, 8 * t + 4)", "factor", FLASH),
    Defect("decode: columns in another order", STREAM, "out[4 * i + w][m + 2], out[4 * i + w + 1][m],",
           "out[4 * i + w + 1][m], out[4 * i + w][m + 2],", FLASH),
    Defect("decode: a join reads too early", DECODE, "sums[threadIdx.x] = sum;\n    sync_block();",
           "sums[threadIdx.x] = sum;", FLASH),
    Defect("pages: the next one too early", PAGES, "table[j / size]", "table[(j + 1) / size]", FLASH),
    Defect("warpgroups: copies ignore free", FEED, "if (mbarrier_test(&t.free, parity)) return;",
           "if (parity >= 0) return;", FLASH),
    Defect("warpgroups: copies keep quiet while they wait", FEED,
           "    flush();\n    mbarrier_wait", "    mbarrier_wait", FLASH),
    Defect("warpgroups: told too early", FEED, "copy_wait<2>();", "copy_wait<3>();", FLASH),
    Defect("warpgroups: K released early", WGMMA, "      group_wait<1>(s);\n      end_scores();",
           "      end_scores();\n      group_wait<1>(s);", FLASH),
    Defect("warpgroups: V released early", WGMMA, "    group_wait<0>(out);\n    release(bars.v[values++ % kStages]);",
           "    release(bars.v[values++ % kStages]);\n    group_wait<0>(out);", FLASH),
    Defect("warpgroups: Q released early", WGMMA, "    queries++;\n    begin_scores();",
           "    queries++;\n    release(bars.q);\n    begin_scores();", FLASH),
    Defect("warpgroups: scores read too early", WGMMA, "group_wait<1>(s)", "group_wait<2>(s)", FLASH),
    Defect("warpgroups: barrier count off by one", FEED, "&free, kGroups * 4", "&free, kGroups * 4 + 1", FLASH),
    Defect("warpgroups: wrong columns", FEED, "k % 4 * 32", "k % 4 * 16", FLASH),
    Defect("warpgroups: wrong panel", FEED, "data, k * 16 * 128, kPanelBytes", "data, k * 16 * 128, 1024", FLASH),
    Defect("warpgroups: pieces not swapped", FEED, "(c % 8 ^ first % 8)", "(c % 8)", FLASH),
    Defect("misaligned vector access", EMBEDDING, "if (common % 16 == 0)", "if (common % 4 == 0)", EMBEDDING),
]  # fmt: skip


def rnn_results(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, ...]]:
    for case in (Recurrent("rnn", T=5, H=32, N=3), Recurrent("rnn", T=5, H=33, I=40, N=9)):
        yield results(module, case, DTYPES[0], monkeypatch)


def gru_results(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, ...]]:
    for case in (Recurrent("gru", T=5, H=40, I=200, N=3), Recurrent("gru", T=4, H=203, N=9)):
        yield results(module, case, BFLOAT16, monkeypatch)


def embedding_results(module: ModuleType, _: pytest.MonkeyPatch) -> Iterator[tuple[Any, ...]]:
    yield (module.embedding_forward(np.arange(4), np.arange(20, dtype=np.float32).reshape(4, 5)),)


def softmax_results(module: ModuleType, _: pytest.MonkeyPatch) -> Iterator[tuple[Any, ...]]:
    x = np.random.default_rng(0).standard_normal((2, 1500)).astype(np.float32)
    yield (module.softmax_forward(x, False, None),)


RESULTS: dict[str, Callable[..., Iterator[tuple[Any, ...]]]] = {
    "src/kernels/rnn_cuda.cu": rnn_results,
    GRU: gru_results,
    EMBEDDING: embedding_results,
    SOFTMAX: softmax_results,
    FLASH: attention_results,
    BACKWARD: attention_results,
}


def plant(folder: Path, defect: Defect, sanitize: str = "") -> Path:
    """The module with the defect, for the types that are run: the others would only take longer to compile."""
    build.patched(folder, {defect.file: (defect.old, defect.new)})
    types = folder / "src/cuda/types.cuh"
    unused = "f64|f16" if defect.kernel in (FLASH, BACKWARD, GRU) else r"\w+"  # tensor cores are for bfloat16
    types.write_text(re.sub(rf"if \((\w+) == DType::({unused})\) return .*;", r"(void)\1;", types.read_text()))
    return build.build(folder, sanitize, replaced=[defect.kernel])


def differs(got: tuple[Any, ...], want: tuple[Any, ...]) -> bool:
    pairs = [(a, b) for a, b in zip(got, want, strict=True) if a is not None]
    return any(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in pairs)


def how_it_shows(sound: ModuleType, broken: ModuleType, kernel: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The first configuration in which the two differ, and how; or that none does."""
    for configuration in (TEAMS, *CONFIGURATIONS) if kernel == GRU else CONFIGURATIONS:
        sound.configure(**configuration)
        want = list(RESULTS[kernel](sound, monkeypatch))
        broken.configure(**configuration)
        try:
            got = list(RESULTS[kernel](broken, monkeypatch))
        except RuntimeError as error:
            assert "hostcuda: " in str(error)
            return f"{configuration}: {error}"
        if any(map(differs, got, want)):
            return f"{configuration}: another result"
    return "not caught"


@pytest.fixture(scope="module")
def planted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Defect], Path]]:
    """`plant`, several at a time: who asks for a defect's module sets those of the next tests going."""
    tests = [item for item in request.session.items if item.name.startswith("test_planted_defect_is_caught[")]
    wanted, together = [test.callspec.params["defect"] for test in tests], os.cpu_count() or 1
    modules: dict[Defect, Future[Path]] = {}
    with ThreadPoolExecutor(together) as pool:

        def get(defect: Defect) -> Path:
            first = wanted.index(defect)
            for one in wanted[first : first + together + 1]:
                if one not in modules:
                    modules[one] = pool.submit(plant, tmp_path_factory.mktemp("defect"), one)
            return modules[defect].result()

        yield get


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_planted_defect_is_caught(
    hostcuda: ModuleType, defect: Defect, planted: Callable[[Defect], Path]
) -> None:
    """By the emulation or by the result; or it ends the process."""
    result = run_worker("defect_worker.py", str(hostcuda.__file__), str(planted(defect)), defect.kernel)
    print(result.stdout)
    shown = result.returncode == 0 and "not caught" not in result.stdout and result.stdout
    assert shown or result.returncode < 0, result.stderr[-4000:] or result.stdout


def test_read_past_an_array_is_caught(hostcuda: ModuleType, tmp_path: Path) -> None:
    """One row too many of an operand is read, and not used."""
    broken = plant(tmp_path, Defect("", GEMM, "first + i < count &&", "first + i <= count &&"))
    result = run_worker("guard_worker.py", str(broken), "end")
    assert result.returncode == -signal.SIGSEGV, (result.returncode, result.stderr[-2000:])


def under_thread_sanitizer(module: Path) -> subprocess.CompletedProcess[str]:
    library = subprocess.run(["gcc", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True)
    options = "halt_on_error=1:exitcode=66:report_signal_unsafe=0"
    return run_worker("race_worker.py", str(module), LD_PRELOAD=library.stdout.strip(), TSAN_OPTIONS=options)


@pytest.mark.slow
def test_no_race(hostcuda: ModuleType) -> None:
    """ThreadSanitizer, told of CUDA's own synchronisation alone, finds nothing."""
    result = under_thread_sanitizer(build.build(sanitize="thread"))
    assert result.returncode == 0 and "done" in result.stdout, result.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("defect", [d for d in DEFECTS if "barrier missing before use" in d.name], ids=str)
def test_planted_race_is_caught(hostcuda: ModuleType, defect: Defect, tmp_path: Path) -> None:
    result = under_thread_sanitizer(plant(tmp_path, defect, "thread"))
    assert result.returncode == 66 and "data race" in result.stderr, result.stderr[-2000:]


@pytest.mark.parametrize("file, kernel", [(GEMM, "src/kernels/rnn_cuda.cu"), (TILE, FLASH)])
def test_no_defect_is_no_defect(
    hostcuda: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, kernel: str
) -> None:
    """The patched build itself changes nothing."""
    same = build.load(plant(tmp_path, Defect("", file, "#pragma once\n", "#pragma once\n// the same\n", kernel)))
    for configuration in CONFIGURATIONS:
        hostcuda.configure(**configuration)
        same.configure(**configuration)
        both = (RESULTS[kernel](module, monkeypatch) for module in (same, hostcuda))
        for got, want in zip(*both, strict=True):
            assert_bitwise_equal(got, want, str(configuration))
