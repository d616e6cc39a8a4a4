"""The GRU kernel, both reset forms, and the corner cases of its two gates."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from support.cases import FLOAT64, Recurrent, make_arrays
from support.compare import assert_matches
from support.oracle import call
from support.recurrent_suite import RecurrentSuite

AFTER = Recurrent("gru")
BEFORE = Recurrent("gru", reset_after=False)


class TestGRU(RecurrentSuite):
    variants = (AFTER, BEFORE)


@pytest.mark.parametrize("case", [AFTER, BEFORE], ids=["reset_after", "reset_before"])
@pytest.mark.parametrize("reset", [0, 1])
@pytest.mark.parametrize("update", [0, 1])
def test_corner_cases(ops: ModuleType, case: Recurrent, reset: int, update: int) -> None:
    """u = 1 - z: u = 0 copies the state; u = r = 1 is the plain RNN; u = 1, r = 0 forgets."""
    case = replace(case, T=3)
    arrays = make_arrays(case, FLOAT64)
    size = case.H
    for name in ("weight_ih", "weight_hh"):
        arrays[name][: 2 * size] = 0
    arrays["bias_hh"][: 2 * size] = 0
    if not case.reset_after or not reset:
        arrays["bias_hh"][2 * size :] = 0
    arrays["bias_ih"][:size] = 800 if reset else -800
    arrays["bias_ih"][size : 2 * size] = -800 if update else 800
    y = call(ops, case, arrays)["y"]
    if not update:
        wanted = np.broadcast_to(arrays["h0"], y.shape)
    else:
        plain = {k: v[2 * size :] for k, v in arrays.items() if k.startswith(("w", "b"))}
        plain["weight_hh"] = plain["weight_hh"] * reset
        wanted, _ = ops.rnn(arrays["x"], **plain, h0=arrays["h0"])
    assert_matches(y, np.asarray(wanted), 1e-14)
