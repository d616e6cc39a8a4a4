"""examples/sentence_search.py: on a tiny encoder made here, and on a real pretrained one where its package is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seqkern.models import BERT, BERTConfig
from test_examples import EXAMPLES, run

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "sat", "ran", "on", "mat"]
SENTENCES = ["the cat sat", "the dog ran on the mat", "mat", "the cat sat on the mat"]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("tokenizers")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("sentence_search", EXAMPLES / "sentence_search.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sentence_search", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a sentence encoder's, with random weights."""
    tokenizers = pytest.importorskip("tokenizers")
    sizes: Any = {
        "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 12, "initializer_range": 0.5,
    }  # fmt: skip
    BERT(BERTConfig(**sizes), rng=np.random.default_rng(0)).save_pretrained(tmp_path)
    vocabulary = {word: k for k, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_batch_is_as_one_by_one(example: Any, folder: Path) -> None:
    encoder = example.Encoder(folder)
    vectors = encoder([*SENTENCES, "cat " * 30])  # the last one is cut at the position table
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for k, sentence in enumerate(SENTENCES):
        np.testing.assert_allclose(encoder([sentence])[0], vectors[k], atol=1e-5)


def test_a_sentence_is_nearest_to_itself(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    command = ["--model", str(folder), "--sentences", "lines.txt", "--top", "1"]
    out = run(tmp_path, "sentence_search.py", *command, "--query", SENTENCES[1])
    assert f"1.00  {SENTENCES[1]}" in out


@pytest.mark.torch
def test_a_real_encoder_against_hugging_face(example: Any) -> None:
    folder = example.package_folder()
    if folder is None:
        pytest.skip(f"the package {example.PACKAGE}, a pretrained sentence encoder, is not installed")
    transformers = pytest.importorskip("transformers")
    import torch

    texts = ["The weather is lovely today.", "It is so sunny outside!", "He drove to the stadium."]
    encoder = example.Encoder(folder)
    vectors = encoder(texts)
    coded = encoder.tokenizer.encode_batch(texts)
    ids, mask = (torch.tensor([getattr(c, name) for c in coded]) for name in ("ids", "attention_mask"))
    with torch.no_grad():
        hidden = transformers.BertModel.from_pretrained(folder).eval()(ids, attention_mask=mask).last_hidden_state
    kept = mask[:, :, None]
    means = (hidden * kept).sum(1) / kept.sum(1)
    np.testing.assert_allclose(vectors, torch.nn.functional.normalize(means).numpy(), atol=1e-5)
    scores = vectors @ vectors.T
    assert scores[0, 1] > 0.5 > scores[0, 2]
