"""`python -m seqkern selftest`: every kernel against its NumPy reference, on this machine.

Each case is run in float32, float64 and bfloat16 (recurrent ones also in float32 with bfloat16
weights, `bf16w`), forward and backward, and compared with the reference in float64 on the already
rounded inputs. A kernel is covered by one entry of `CASES` in a module beside this one: a function
that draws the kernel's cases. This is a check of an installation; the tests in the repository are
far stricter.

Bound of an error, in the maximum norm, for a result r of sums of up to K terms over T steps:

    |error| <= T·(p + gamma_K)·sqrt(K)·max(1, |r|) + s·u_out·max(1, |r|)

gamma_K = K·u / (1 - K·u) with u the unit roundoff of the arithmetic, p the relative error of one
product in the precision mode. sqrt(K): inputs are of order one and weights of order 1/sqrt(K), so
by Cauchy and Schwarz no sum of absolute products exceeds it. T: every step passes the errors
before it on. u_out is the roundoff of a bfloat16 result, 0 otherwise, and s = T + 1: the state is
stored once per step, the result once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

from . import attention, conv, elementwise, layers, norms, recurrent
from ._check import Case, Cases, Result, check

__all__ = ["REGISTRY", "check", "jobs", "main", "run", "summary"]

REGISTRY: dict[str, Cases] = {
    **recurrent.CASES,
    **attention.CASES,
    **layers.CASES,
    **conv.CASES,
    **elementwise.CASES,
    **norms.CASES,
}

ProgressBar: TypeAlias = Callable[[int, str], AbstractContextManager[Any]]


def jobs(quick: bool = False, only: str | None = None) -> list[tuple[str, Case, str]]:
    """(kernel, case, dtype) for everything that is to be checked."""
    return [
        (kernel, case, dtype)
        for kernel, cases in REGISTRY.items()
        if only is None or only in kernel
        for case in cases(kernel, quick)
        for dtype in case.dtypes
    ]


def run(work: list[tuple[str, Case, str]], progress: ProgressBar | None = None) -> list[Result]:
    """Check all of `work`; `progress(total, label)` is a context manager with `update(1)`."""
    results = []
    with progress(len(work), "selftest") if progress else nullcontext() as bar:
        for job in work:
            results.append(check(*job))
            if bar is not None:
                bar.update(1)
    return results


def summary(results: list[Result]) -> str:
    """A line per kernel and dtype with its worst case, then every failure in full."""
    lines = [
        f"{'kernel':15} {'dtype':9} {'cases':>5} {'worst error':>11} {'bound':>10}  ok",
        f"{'-' * 15} {'-' * 9} {'-' * 5} {'-' * 11} {'-' * 10}  --",
    ]
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.kernel, result.dtype), []).append(result)
    for (kernel, dtype), members in groups.items():
        worst = max(members, key=lambda result: result.severity)
        lines.append(
            f"{kernel:15} {dtype:9} {len(members):5} {worst.error:11.2e} {worst.bound:10.2e}  "
            f"{'ok' if worst.ok else 'FAILED'}"
        )
    failed = [result for result in results if not result.ok]
    lines += [
        f"FAILED {r.kernel} {r.form} {r.dtype}: "
        + (r.problem or f"{r.array} is off by {r.error:.3g}, bound {r.bound:.3g}")
        for r in failed
    ]
    return "\n".join(lines)


def main(quick: bool = False, only: str | None = None, progress: ProgressBar | None = None) -> int:
    """Check, print the table; 0 when everything is within its bound, 1 when not, 2 for no match."""
    work = jobs(quick, only)
    if not work:
        print(f"no kernel's name contains {only!r}; there are {', '.join(REGISTRY)}")
        return 2
    start = time.perf_counter()
    results = run(work, progress)
    print(summary(results))
    failed = sum(not result.ok for result in results)
    print(
        f"\n{len(results)} comparisons of forward and backward with the NumPy reference in "
        f"{time.perf_counter() - start:.1f} s: {f'{failed} FAILED' if failed else 'all ok'}"
    )
    return 1 if failed else 0
