"""The vanilla RNN kernel, tanh and relu."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from support.cases import Recurrent
from support.recurrent_suite import RecurrentSuite


class TestRNN(RecurrentSuite):
    variants = (Recurrent("rnn"), Recurrent("rnn", nonlinearity="relu"))


def test_known_step(ops: ModuleType) -> None:
    """h = tanh(x w + b + h u + c), by hand."""
    one, two = np.ones((1, 1)), np.full((1, 1), 2.0)
    bias = np.array([0.25])
    y, h_n = ops.rnn(np.full((1, 1, 1), 0.5), two, one, bias, bias, h0=-one)
    assert y[0, 0, 0] == h_n[0, 0] == pytest.approx(np.tanh(0.5), rel=1e-15)
