"""Whole models, each with a `Config` dataclass."""

from ._pretrained import count_parameters
from ._recurrent import RecurrentOutput
from ._transformer import ModelOutput
from .gpt2 import GPT2, GPT2Config
from .rnn_lm import RNNLM, RNNLMConfig
from .sequence_model import SequenceModel, SequenceModelConfig
from .swin import Swin, SwinConfig
from .vgg import VGG, VGGConfig
from .vit import ViT, ViTConfig

__all__ = [
    "GPT2",
    "RNNLM",
    "VGG",
    "GPT2Config",
    "ModelOutput",
    "RNNLMConfig",
    "RecurrentOutput",
    "SequenceModel",
    "SequenceModelConfig",
    "Swin",
    "SwinConfig",
    "VGGConfig",
    "ViT",
    "ViTConfig",
    "count_parameters",
]
