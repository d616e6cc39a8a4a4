"""Wav2Vec2 against Hugging Face's own: outputs and every gradient, with random weights, through a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from seqkern import models
from seqkern.models import Wav2Vec2, Wav2Vec2Config

SIZES: dict[str, Any] = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "conv_dim": (6, 8, 8), "conv_kernel": (7, 3, 2), "conv_stride": (4, 2, 2), "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 3, "classifier_proj_size": 5,
}  # fmt: skip
FORMS: list[dict[str, Any]] = [
    {},
    {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True, "num_conv_pos_embeddings": 5},
]
HEADS = {"none": "Wav2Vec2Model", "ctc": "Wav2Vec2ForCTC", "classification": "Wav2Vec2ForSequenceClassification"}
CLOSE = {"rtol": 1e-8, "atol": 1e-9}
B, SAMPLES = 3, 150
MASK = (np.arange(SAMPLES) < np.array([150, 90, 41])[:, None]).astype(np.int64)


def theirs(head: str, dtype: Any, folder: Path, **form: Any) -> Any:
    """A torch model with noise in every parameter, saved to `folder`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(**{**SIZES, **form}, vocab_size=9, num_labels=4, pad_token_id=0)
    model = getattr(transformers, HEADS[head])(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "original" not in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, dtype=dtype))
    model.save_pretrained(folder)
    return model


@pytest.mark.torch
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=["group", "layer-stable"])
@pytest.mark.parametrize("head", list(HEADS))
def test_transformers_agrees(head: str, form: dict[str, Any], masked: bool, tmp_path: Path, rng: Any) -> None:
    import torch

    other = theirs(head, torch.float64, tmp_path, **form)
    model = Wav2Vec2.from_pretrained(tmp_path)
    assert model.config.head == head and not model.training
    sound, mask = rng.standard_normal((B, SAMPLES)), MASK if masked else None
    leaf = torch.tensor(sound, requires_grad=True)
    given = {"attention_mask": None if mask is None else torch.from_numpy(mask)}
    expected = other(leaf, **given)
    output, pull = model.vjp(sound, mask, output_hidden_states=True)
    y = expected.last_hidden_state if head == "none" else other.wav2vec2(leaf, **given).last_hidden_state
    keep = np.ones(y.shape[:2], bool)
    if masked:
        keep = np.arange(y.shape[1]) < model.config.frames(mask.sum(1))[:, None]  # type: ignore[union-attr]
    np.testing.assert_allclose(output.last_hidden_state[keep], y.detach().numpy()[keep], **CLOSE)
    np.testing.assert_array_equal(model(sound, mask).last_hidden_state, output.last_hidden_state)
    result = output.logits if head != "none" else output.last_hidden_state
    wanted = expected.logits if head != "none" else y
    weight = rng.standard_normal(result.shape) * (keep[..., None] if result.ndim == 3 else 1)
    np.testing.assert_allclose(result[weight != 0], wanted.detach().numpy()[weight != 0], **CLOSE)
    (wanted * torch.from_numpy(weight)).sum().backward()
    (dsound,) = pull(weight)
    np.testing.assert_allclose(dsound, leaf.grad.numpy(), **CLOSE)  # type: ignore[union-attr]
    grads = model._accepted({n: p.grad.numpy() for n, p in other.named_parameters() if p.grad is not None})
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad, grads[name], err_msg=name, **CLOSE)


@pytest.mark.torch
def test_base_size_counts_as_theirs() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        base = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config())
    expected = sum(p.numel() for p in base.parameters()) - 768  # masked_spec_embed, for pre-training
    assert models.count_parameters(Wav2Vec2Config(head="ctc")) == expected == 94_395_552


def make(rng: Any, dtype: Any = np.float64, **changes: Any) -> Wav2Vec2:
    return Wav2Vec2(Wav2Vec2Config(**{**SIZES, "vocab_size": 9, "num_labels": 4, **changes}), dtype=dtype, rng=rng)


@pytest.mark.parametrize("form", FORMS, ids=["group", "layer-stable"])
@pytest.mark.parametrize("head", list(HEADS))
def test_gradients_by_central_differences(head: str, form: dict[str, Any], rng: Any) -> None:
    model, sound = make(rng, head=head, initializer_range=0.3, **form).eval(), rng.standard_normal((B, SAMPLES))
    assert models.count_parameters(model.config) == sum(p.data.size for p in model.parameters())

    def value(x: Any) -> Any:
        output = model(x, MASK)
        return output.last_hidden_state if head == "none" else output.logits

    weight = rng.standard_normal(value(sound).shape)
    _, pull = model.vjp(sound, MASK)
    (dsound,) = pull(weight)
    arrays = {name: (p.data, p.grad) for name, p in model.named_parameters()} | {"sound": (sound, dsound)}
    for name, (array, grad) in arrays.items():
        step = 1e-6 * rng.standard_normal(array.shape)
        array += step
        plus = float(np.vdot(weight, value(sound)))
        array -= 2 * step
        minus = float(np.vdot(weight, value(sound)))
        array += step
        assert np.vdot(grad, step) == pytest.approx((plus - minus) / 2, rel=1e-4, abs=1e-10), name


@pytest.mark.parametrize("dtype", [np.float32, bfloat16])
@pytest.mark.parametrize("head", list(HEADS))
def test_files_and_old_names(head: str, dtype: Any, tmp_path: Path, rng: Any) -> None:
    from safetensors.numpy import load_file, save_file

    model, sound = make(rng, dtype, head=head).eval(), rng.standard_normal((B, SAMPLES)).astype(dtype)
    model.save_pretrained(tmp_path)
    expected = model(sound).last_hidden_state
    loaded = Wav2Vec2.from_pretrained(tmp_path)
    assert loaded.config.head == head
    np.testing.assert_array_equal(loaded(sound).last_hidden_state, expected)
    weights = load_file(tmp_path / "model.safetensors")
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, name in old.items():
        key = f"wav2vec2.encoder.pos_conv_embed.conv.{new}"
        weights[key.replace(new, name)] = weights.pop(key)
    weights["wav2vec2.masked_spec_embed"] = np.ones(12, dtype)
    save_file(weights, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(Wav2Vec2.from_pretrained(tmp_path)(sound).last_hidden_state, expected)
    if dtype is np.float32 and head != "none":  # and theirs reads ours
        transformers = pytest.importorskip("transformers")
        torch = pytest.importorskip("torch")
        model.save_pretrained(tmp_path)
        other = getattr(transformers, HEADS[head]).from_pretrained(tmp_path).eval()
        with torch.no_grad():
            logits = other(torch.from_numpy(sound)).logits.numpy()
        np.testing.assert_allclose(logits, model(sound).logits, rtol=1e-3, atol=1e-4)


def test_errors_name_what_is_wrong(tmp_path: Path, rng: Any) -> None:
    model, sound = make(rng), rng.standard_normal((B, SAMPLES))
    calls: list[tuple[Any, str]] = [
        (lambda: model(sound[0]), r"sound must be \[B, samples\], got \[150\]"),
        (lambda: model(sound[:, :9]), "9 samples are too few for one frame"),
        (lambda: model(sound, MASK[:, 1:]), r"attention_mask must be \[B, samples\] = \[3, 150\]"),
        (lambda: model(sound, MASK * 0), "attention_mask must keep enough samples"),
        (lambda: make(rng, head="asr"), "head must be one of"),
        (lambda: make(rng, conv_dim=(6, 8)), "one entry per convolution"),
        (lambda: make(rng, feat_extract_norm="batch"), "feat_extract_norm must be one of"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (({"add_adapter": True}, "add_adapter must be False"), ({"model_type": "bert"}, "bert")):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            Wav2Vec2.from_pretrained(tmp_path)
