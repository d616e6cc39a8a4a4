"""Whole models, each with a `Config` dataclass."""

from ._recurrent import RecurrentOutput
from .rnn_lm import RNNLM, RNNLMConfig
from .sequence_model import SequenceModel, SequenceModelConfig

__all__ = [
    "RNNLM",
    "RNNLMConfig",
    "RecurrentOutput",
    "SequenceModel",
    "SequenceModelConfig",
]
