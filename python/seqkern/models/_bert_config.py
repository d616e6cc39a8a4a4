"""Sizes and names of the BERT family: BERT, RoBERTa and DistilBERT are one encoder spelt three ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..nn._init import check_choice, check_probability, check_size
from ._pretrained import known_fields, refuse

_EMBEDDINGS = {
    "embeddings.words": "embeddings.word_embeddings", "embeddings.positions": "embeddings.position_embeddings",
    "embeddings.types": "embeddings.token_type_embeddings", "embeddings.norm": "embeddings.LayerNorm",
}  # fmt: skip
_LAYER, _BLOCK = "encoder.layer.#.", "transformer.layer.#."
_BERT = _EMBEDDINGS | {
    "layers.#.query": f"{_LAYER}attention.self.query", "layers.#.key": f"{_LAYER}attention.self.key",
    "layers.#.value": f"{_LAYER}attention.self.value", "layers.#.out": f"{_LAYER}attention.output.dense",
    "layers.#.norm1": f"{_LAYER}attention.output.LayerNorm", "layers.#.fc1": f"{_LAYER}intermediate.dense",
    "layers.#.fc2": f"{_LAYER}output.dense", "layers.#.norm2": f"{_LAYER}output.LayerNorm", "pooler": "pooler.dense",
}  # fmt: skip
_DISTILBERT = _EMBEDDINGS | {
    "layers.#.query": f"{_BLOCK}attention.q_lin", "layers.#.key": f"{_BLOCK}attention.k_lin",
    "layers.#.value": f"{_BLOCK}attention.v_lin", "layers.#.out": f"{_BLOCK}attention.out_lin",
    "layers.#.norm1": f"{_BLOCK}sa_layer_norm", "layers.#.fc1": f"{_BLOCK}ffn.lin1",
    "layers.#.fc2": f"{_BLOCK}ffn.lin2", "layers.#.norm2": f"{_BLOCK}output_layer_norm",
}  # fmt: skip
ENCODER = {"bert": _BERT, "roberta": _BERT, "distilbert": _DISTILBERT}
_SHARED = {"span": {"head": "qa_outputs"}, "token": {"head": "classifier"}}
# Theirs have no model prefix. A classifier of RoBERTa's and DistilBERT's brings its own dense layer as pooler.
HEADS: dict[str, dict[str, dict[str, str]]] = {
    "bert": _SHARED | {
        "masked_lm": {"head": "cls.predictions", "head.dense": "cls.predictions.transform.dense",
                      "head.norm": "cls.predictions.transform.LayerNorm"},
        "sequence": {"head": "classifier"},
    },
    "roberta": _SHARED | {
        "masked_lm": {"head": "lm_head", "head.dense": "lm_head.dense", "head.norm": "lm_head.layer_norm"},
        "sequence": {"pooler": "classifier.dense", "head": "classifier.out_proj"},
    },
    "distilbert": _SHARED | {
        "masked_lm": {"head": "vocab_projector", "head.dense": "vocab_transform", "head.norm": "vocab_layer_norm"},
        "sequence": {"pooler": "pre_classifier", "head": "classifier"},
    },
}  # fmt: skip
KINDS = {"masked_lm": "ForMaskedLM", "sequence": "ForSequenceClassification", "token": "ForTokenClassification",
         "span": "ForQuestionAnswering", None: "Model"}  # fmt: skip
CLASSES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
# Ours -> DistilBERT's own names in its config.json.
DISTILBERT_FIELDS = {
    "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim", "hidden_act": "activation", "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}  # fmt: skip


@dataclass
class BERTConfig:
    """Sizes of a BERT (base), under Hugging Face's names for BERT; `large`, `roberta`, `distilbert` give theirs.

    model_type: "bert", "roberta" (positions count the tokens that are no padding, from pad_token_id + 1) or
    "distilbert" (no token types, no pooler). head: None, "masked_lm", "sequence" (one class per row), "token" (one
    per token) or "span" (start and end). pooler None: where transformers has one, which is without a head and, in
    BERT, for "sequence". id2label: the names of the num_labels classes. `from_pretrained` sees head, pooler and
    num_labels in the weights.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    model_type: str = "bert"
    head: str | None = None
    pooler: bool | None = None
    num_labels: int = 2
    id2label: dict[str, str] | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size",
                     "max_position_embeddings", "num_labels"):  # fmt: skip
            check_size(getattr(self, name), name)
        check_size(self.num_hidden_layers, "num_hidden_layers", 0)
        check_size(self.type_vocab_size, "type_vocab_size", 0)
        check_probability(self.layer_norm_eps, "layer_norm_eps")
        check_choice(self.model_type, "model_type", tuple(ENCODER))
        check_choice(self.head, "head", tuple(KINDS))
        if self.pad_token_id is None and self.model_type == "roberta":
            raise ValueError("pad_token_id must be given for model_type 'roberta', whose positions count from it")
        if self.pad_token_id is not None and check_size(self.pad_token_id, "pad_token_id", 0) >= self.vocab_size:
            raise ValueError(f"pad_token_id must be below vocab_size = {self.vocab_size}, got {self.pad_token_id}")
        if self.positions < 1:
            raise ValueError(f"max_position_embeddings must exceed pad_token_id + 1: {self.max_position_embeddings}")

    @classmethod
    def large(cls, **changes: Any) -> BERTConfig:
        sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        return cls(**{**sizes, **changes})

    @classmethod
    def roberta(cls, **changes: Any) -> BERTConfig:
        """RoBERTa (base)."""
        sizes = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1,
                 "layer_norm_eps": 1e-5, "pad_token_id": 1}  # fmt: skip
        return cls(**{**sizes, **changes})

    @classmethod
    def distilbert(cls, **changes: Any) -> BERTConfig:
        return cls(**{"model_type": "distilbert", "num_hidden_layers": 6, "type_vocab_size": 0, **changes})

    @property
    def positions(self) -> int:
        """The longest sequence."""
        first = (self.pad_token_id or 0) + 1 if self.model_type == "roberta" else 0
        return self.max_position_embeddings - first

    @property
    def has_pooler(self) -> bool:
        """Whether there is a pooler_output."""
        classifier = self.head == "sequence"
        if self.model_type == "distilbert" or (classifier and self.model_type == "roberta"):
            return False
        return classifier or (self.head is None if self.pooler is None else self.pooler)

    @property
    def is_pooled(self) -> bool:
        """Whether there is a dense layer on the first token."""
        return self.has_pooler or self.head == "sequence"

    @property
    def head_dropout(self) -> float:
        if self.head == "span" and self.model_type != "distilbert":
            return 0.0
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    def count_parameters(self) -> int:
        e, inner = self.hidden_size, self.intermediate_size
        dense, norm = e * e + e, 2 * e
        embeddings = (self.vocab_size + self.max_position_embeddings + self.type_vocab_size) * e + norm
        layer = 4 * dense + 2 * e * inner + inner + e + 2 * norm
        head = 0 if self.head is None else self.num_labels * (e + 1)
        if self.head == "masked_lm":
            head = dense + norm + self.vocab_size
        return embeddings + self.num_hidden_layers * layer + self.is_pooled * dense + head

    @classmethod
    def from_hf(cls, values: dict[str, Any]) -> BERTConfig:
        refuse(values, {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False})
        names = values.get("architectures") or [""]
        head = next((h for h, kind in KINDS.items() if h and str(names[0]).endswith(kind)), None)
        given: dict[str, Any] = {"head": head}
        if values["model_type"] == "distilbert":
            dropout = "qa_dropout" if head == "span" else "seq_classif_dropout"
            given |= {ours: values[theirs] for ours, theirs in DISTILBERT_FIELDS.items() if theirs in values}
            given |= {"classifier_dropout": values.get(dropout), "type_vocab_size": 0, "layer_norm_eps": 1e-12}
            return cls.distilbert(**known_fields(cls, values) | given)
        return cls(**known_fields(cls, values) | given)

    def to_hf(self) -> dict[str, Any]:
        values = asdict(self)
        labels = self.id2label or {str(k): f"LABEL_{k}" for k in range(self.num_labels)}
        values |= {"id2label": labels, "label2id": {label: int(k) for k, label in labels.items()}}
        values["architectures"] = [CLASSES[self.model_type] + KINDS[self.head]]
        if self.model_type == "distilbert":
            for ours, theirs in DISTILBERT_FIELDS.items():
                values[theirs] = values.pop(ours)
            dropout = values.pop("classifier_dropout")
            if dropout is not None:
                values["qa_dropout" if self.head == "span" else "seq_classif_dropout"] = dropout
            del values["type_vocab_size"], values["layer_norm_eps"]
        return {name: value for name, value in values.items() if name not in ("head", "pooler", "num_labels")}

    def fitted(self, weights: Mapping[str, Any]) -> BERTConfig:
        """This config with the head, pooler and number of labels that the weights show."""
        changes: dict[str, Any] = {"head": self._head(weights), "pooler": None}
        bias = weights.get(f"{HEADS[self.model_type].get(changes['head'], {}).get('head')}.bias")
        if changes["head"] != "masked_lm" and bias is not None and len(getattr(bias, "shape", ())) == 1:
            changes["num_labels"] = len(bias)
        if self.id2label is not None and len(self.id2label) != changes.get("num_labels", self.num_labels):
            changes["id2label"] = None
        plain, pooler = replace(self, **changes), any("pooler.dense." in key for key in weights)
        return plain if plain.has_pooler == pooler else replace(plain, pooler=pooler)

    def _head(self, weights: Mapping[str, Any]) -> str | None:
        def holds(name: str) -> bool:
            return any(key.startswith(f"{name}.") for key in weights)

        heads = HEADS[self.model_type]
        if any(map(holds, heads["masked_lm"].values())):
            return "masked_lm"
        if holds("qa_outputs"):
            return "span"
        if not holds("classifier") and not holds("pre_classifier"):
            return None
        if self.head in ("sequence", "token"):
            return self.head
        pooler = heads["sequence"].get("pooler", "pooler.dense")
        return "sequence" if any(f"{pooler}." in key for key in weights) else "token"
