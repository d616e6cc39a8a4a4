"""Whole models, each with a `Config` dataclass."""

from ._beam import Generated
from ._bert_config import BERTConfig
from ._pretrained import count_parameters
from ._recurrent import RecurrentOutput
from ._transformer import ModelOutput
from .bert import BERT
from .captioner import Captioner, CaptionerConfig
from .gpt2 import GPT2, GPT2Config
from .rnn_lm import RNNLM, RNNLMConfig
from .seq2seq import Seq2Seq, Seq2SeqConfig, Seq2SeqOutput
from .sequence_model import SequenceModel, SequenceModelConfig
from .swin import Swin, SwinConfig
from .transformer_mt import TransformerMT, TransformerMTConfig
from .vgg import VGG, VGGConfig
from .vit import ViT, ViTConfig
from .wav2vec2 import Wav2Vec2, Wav2Vec2Config
from .word2vec import Word2Vec, Word2VecConfig, join_phrases

__all__ = [
    "BERT",
    "GPT2",
    "RNNLM",
    "VGG",
    "BERTConfig",
    "Captioner",
    "CaptionerConfig",
    "GPT2Config",
    "Generated",
    "ModelOutput",
    "RNNLMConfig",
    "RecurrentOutput",
    "Seq2Seq",
    "Seq2SeqConfig",
    "Seq2SeqOutput",
    "SequenceModel",
    "SequenceModelConfig",
    "Swin",
    "SwinConfig",
    "TransformerMT",
    "TransformerMTConfig",
    "VGGConfig",
    "ViT",
    "ViTConfig",
    "Wav2Vec2",
    "Wav2Vec2Config",
    "Word2Vec",
    "Word2VecConfig",
    "count_parameters",
    "join_phrases",
]
