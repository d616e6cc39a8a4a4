"""Modules with the constructors, call forms and parameter names of torch.nn.

`m(x)` computes; `y, pullback = m.vjp(x)` also returns the gradient function: `pullback(dy)` adds
parameter gradients to `p.grad` and returns the gradients of the inputs as a tuple.
"""

from .cells import GRUCell, LSTMCell, RNNCell
from .container import ModuleList, Sequential
from .conv import Conv1d, Conv2d, MaxPool2d
from .dropout import Dropout
from .embedding import Embedding
from .linear import Linear
from .loss import CrossEntropyLoss
from .module import Module, Parameter, Pullback
from .recurrent import GRU, LSTM, RNN
from .softmax import LogSoftmax, Softmax

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Conv1d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "LogSoftmax",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "Parameter",
    "Pullback",
    "RNNCell",
    "Sequential",
    "Softmax",
]
