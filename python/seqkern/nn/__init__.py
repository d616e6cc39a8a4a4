"""Modules with the constructors, call forms and parameter names of torch.nn.

`m(x)` computes; `y, pullback = m.vjp(x)` also returns the gradient function: `pullback(dy)` adds
parameter gradients to `p.grad` and returns the gradients of the inputs as a tuple.
"""

from ._attend import KVCache
from .activation import GELU, Identity, ReLU, Sigmoid, SiLU, Tanh
from .attention import MultiheadAttention
from .batch_norm import BatchNorm1d, BatchNorm2d
from .cells import GRUCell, LSTMCell, RNNCell
from .container import ModuleList, Sequential
from .conv import Conv1d, Conv2d, MaxPool2d
from .dropout import Dropout
from .embedding import Embedding
from .encoder_attention import BahdanauAttention, LuongAttention
from .int8_linear import Int8Linear, quantize_int8_
from .linear import Linear
from .loss import CrossEntropyLoss
from .module import Buffer, Module, Parameter, Pullback
from .norm import LayerNorm, RMSNorm
from .recurrent import GRU, LSTM, RNN
from .softmax import LogSoftmax, Softmax
from .transformer import SinusoidalPositions, Transformer, TransformerDecoder, TransformerEncoder
from .transformer_layers import DecoderLayerCache, TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "BahdanauAttention",
    "BatchNorm1d",
    "BatchNorm2d",
    "Buffer",
    "Conv1d",
    "Conv2d",
    "CrossEntropyLoss",
    "DecoderLayerCache",
    "Dropout",
    "Embedding",
    "GRUCell",
    "Identity",
    "Int8Linear",
    "KVCache",
    "LSTMCell",
    "LayerNorm",
    "Linear",
    "LogSoftmax",
    "LuongAttention",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "MultiheadAttention",
    "Parameter",
    "Pullback",
    "RMSNorm",
    "RNNCell",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SinusoidalPositions",
    "Softmax",
    "Tanh",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "quantize_int8_",
]
