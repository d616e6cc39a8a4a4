"""The LSTM kernel: plain, projected, with peepholes, and both."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from support.cases import Recurrent
from support.recurrent_suite import RecurrentSuite


class TestLSTM(RecurrentSuite):
    variants = (
        Recurrent("lstm"),
        Recurrent("lstm", P=4),
        Recurrent("lstm", peephole=True),
        Recurrent("lstm", P=4, peephole=True),
    )


def test_gates_in_the_order_i_f_g_o(ops: ModuleType) -> None:
    """Biases that open and shut single gates: c = f·c + i·tanh(g), h = o·tanh(c)."""
    x, weight_ih, weight_hh = np.zeros((1, 1, 1)), np.zeros((4, 1)), np.zeros((4, 1))
    shut, open_, half = -800.0, 800.0, np.arctanh(0.5)
    c0 = np.full((1, 1), 0.25)
    for gates, cell in (
        ((open_, shut, half, open_), 0.5),
        ((shut, open_, half, open_), 0.25),
        ((open_, open_, half, open_), 0.75),
        ((shut, shut, half, open_), 0.0),
    ):
        y, (_, c_n) = ops.lstm(x, weight_ih, weight_hh, np.array(gates), c0=c0)
        assert c_n[0, 0] == pytest.approx(cell, rel=1e-14)
        assert y[0, 0, 0] == pytest.approx(np.tanh(cell), rel=1e-14)
    y, _ = ops.lstm(x, weight_ih, weight_hh, np.array((open_, open_, half, shut)), c0=c0)
    assert y[0, 0, 0] == 0
