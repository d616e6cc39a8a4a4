"""BERT, RoBERTa and DistilBERT, with each head, against Hugging Face's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import models
from seqkern.models import BERT, BERTConfig
from support import parity
from support.bert_kinds import KINDS, SIZES, make, some_ids

pytestmark = pytest.mark.torch


def pair_of_models(kind: str, folder: Any, scale: float, sizes: dict[str, Any]) -> tuple[Any, BERT]:
    """Theirs with random weights, and ours from the folder they were saved to."""
    transformers = pytest.importorskip("transformers")
    settings = BERTConfig(**{**sizes, **KINDS[kind]}).to_hf()
    names = settings.pop("architectures")
    architecture = getattr(transformers, names[0])
    theirs = parity.randomised(architecture(architecture.config_class(**settings)), scale)
    theirs.save_pretrained(folder)
    return theirs, BERT.from_pretrained(folder)


def seed_of(rng: Any, model: BERT, ids: Any, **call: Any) -> Any:
    output = model(ids, **call)
    return rng.standard_normal((output.last_hidden_state if output.logits is None else output.logits).shape)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
@pytest.mark.parametrize("kind", KINDS)
def test_against_hugging_face_in_float64(kind: str, padded: bool, rng: Any, tmp_path: Any) -> None:
    theirs, ours = pair_of_models(kind, tmp_path, 0.2, SIZES)
    ids, call = some_ids(rng, kind, padded)
    ours, seed = ours.to(np.float64), seed_of(rng, ours, ids, **call)
    exact = parity.their_results(theirs.double(), ids, seed, **call)
    found = parity.our_results(ours, ids, seed, **call)
    assert ours.config.head == KINDS[kind].get("head") and ("pooler_output" in found) == ours.config.has_pooler
    # Without a head their pooler has no part in the gradient, and none of its own here.
    parity.compare(found, parity.own_names(ours, exact))


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_loads_what_we_save(kind: str, rng: Any, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    ours, (ids, call) = make(rng, kind, np.float32), some_ids(rng, kind, True)
    ours.save_pretrained(tmp_path)
    options: Any = {"attn_implementation": "eager", "output_loading_info": True}
    architecture = getattr(transformers, ours.config.to_hf()["architectures"][0])
    theirs, info = architecture.from_pretrained(tmp_path, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tensors = {name: torch.from_numpy(value) for name, value in call.items()}
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(ids), output_hidden_states=True, output_attentions=True, **tensors)
    found = ours(ids, **call, output_hidden_states=True, output_attentions=True)
    # float32: some 60 roundings of 2^-24 in a row, on values of order 10.
    for field in ("hidden_states", "attentions"):
        for a, b in zip(getattr(found, field), getattr(expected, field), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    fresh = BERT(ours.config).eval()
    fresh.load_state_dict(theirs.state_dict())  # transformers' names in memory, tied decoders among them
    for field in ("logits", "last_hidden_state", "pooler_output"):
        np.testing.assert_array_equal(getattr(fresh(ids, **call), field), getattr(found, field))


def test_labels_come_back(rng: Any, tmp_path: Any) -> None:
    pytest.importorskip("transformers")
    theirs, _ = pair_of_models("bert-sequence", tmp_path, 0.2, SIZES)
    theirs.config.id2label = {0: "no", 1: "perhaps", 2: "yes"}
    theirs.save_pretrained(tmp_path)
    config = BERT.from_pretrained(tmp_path).config
    assert config.num_labels == 3 and config.id2label == {"0": "no", "1": "perhaps", "2": "yes"}


def test_a_pretraining_checkpoint(rng: Any, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {name: value for name, value in SIZES.items() if name != "num_labels"}
    theirs = parity.randomised(transformers.BertForPreTraining(transformers.BertConfig(**sizes)), 0.2)
    theirs.save_pretrained(tmp_path)
    import torch

    ours, (ids, _) = BERT.from_pretrained(tmp_path), some_ids(rng, "bert", False)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).prediction_logits
    np.testing.assert_allclose(ours(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert ours(ids).pooler_output is not None


@pytest.mark.parametrize("kind", ["bert-masked_lm", "roberta-sequence", "distilbert-span"])
def test_float32_is_as_accurate_as_hugging_faces(kind: str, rng: Any, tmp_path: Any) -> None:
    check_float32(kind, tmp_path, rng, {**SIZES, "hidden_size": 32, "intermediate_size": 64}, 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert-masked_lm", "roberta-sequence", "distilbert-span"])
def test_base_size_is_as_accurate_as_hugging_faces(kind: str, rng: Any, tmp_path: Any) -> None:
    sizes = {"bert": {}, "roberta": {"vocab_size": 50265, "max_position_embeddings": 514, "pad_token_id": 1},
             "distilbert": {"num_hidden_layers": 6}}[kind.partition("-")[0]]  # fmt: skip
    check_float32(kind, tmp_path, rng, sizes, 64)


def check_float32(kind: str, folder: Any, rng: Any, sizes: dict[str, Any], length: int) -> None:
    theirs, ours = pair_of_models(kind, folder, 0.02, sizes)
    c = ours.config
    ids, mask = rng.integers(2, c.vocab_size, (2, length)), np.ones((2, length), int)
    ids[0, length // 2 :], mask[0, length // 2 :] = c.pad_token_id, 0
    seed = seed_of(rng, ours, ids, attention_mask=mask)
    naive = parity.their_results(theirs, ids, seed.astype(np.float32), attention_mask=mask)
    exact = parity.their_results(theirs.double(), ids, seed, attention_mask=mask)
    found = parity.our_results(ours, ids, seed.astype(np.float32), attention_mask=mask)
    parity.compare(
        found, parity.own_names(ours, exact), parity.own_names(ours, naive),
        products=6 * c.num_hidden_layers + 3, terms=max(c.intermediate_size, c.vocab_size * (c.head == "masked_lm")),
    )  # fmt: skip
    assert models.count_parameters(c) == sum(p.data.size for p in ours.parameters())
