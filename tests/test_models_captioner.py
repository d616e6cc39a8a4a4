"""Captioner: gradients by central differences for every kind of encoder, decoding, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from seqkern import models, nn, optim
from seqkern.models import Captioner, CaptionerConfig, ModelOutput

V, N, T, F = 7, 2, 3, 5


class States(nn.Module):
    """An encoder like ViT: a ModelOutput of N x 4 places."""

    def __init__(self, rng: Any) -> None:
        self.linear = nn.Linear(16, F, dtype=np.float64, rng=rng)

    def vjp(self, images: Any) -> Any:
        y, pull = self.linear.vjp(images.reshape(len(images), -1, 16))

        def back(grad: ModelOutput) -> Any:
            return pull(grad.last_hidden_state)[0].reshape(images.shape)

        return ModelOutput(last_hidden_state=y), nn.Pullback(back)


def make(rng: Any, kind: str = "stack", dtype: Any = np.float64, **changes: Any) -> tuple[Captioner, np.ndarray]:
    sizes: dict[str, Any] = {"embedding_size": 4, "hidden_size": 6, "channels": (3, 4), "in_channels": 1}
    encoder: Any = None
    images = rng.standard_normal((N, 1, 8, 8))
    if kind != "stack":
        sizes["feature_size"] = F
        frozen = rng.standard_normal((16, F))
        encoder = {
            "states": States(rng),
            "maps": nn.Conv2d(1, F, 3, 2, dtype=dtype, rng=rng),
            "function": lambda x: x.reshape(len(x), -1, 16) @ frozen,
            "features": None,
        }[kind]
        images = rng.standard_normal((N, 4, F)) if kind == "features" else images
    model = Captioner(CaptionerConfig(V, **{**sizes, **changes}), encoder, dtype=dtype, rng=rng)
    return model, images.astype(dtype)


FORMS: list[tuple[str, dict[str, Any]]] = [
    ("stack", {}),
    ("stack", {"attention": "luong", "cell": "gru"}),
    ("stack", {"attention": "none", "num_layers": 2}),
    ("states", {"num_layers": 2}),
    ("maps", {}),
    ("function", {}),
    ("features", {"cell": "gru", "num_layers": 2}),
]


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_gradients_by_central_differences(kind: str, form: dict[str, Any], rng: Any) -> None:
    model, images = make(rng, kind, **form)
    tgt = rng.integers(0, V, (N, T))
    output, pull = model.vjp(images, tgt)
    weight = rng.standard_normal(output.logits.shape)
    dimages, dtgt = pull(weight)
    assert dtgt is None
    arrays = {name: (p.data, p.grad) for name, p in model.named_parameters()}
    if kind == "function":
        assert dimages is None
    else:
        arrays["images"] = (images, dimages)
    for name, (array, grad) in arrays.items():
        step = 1e-6 * rng.standard_normal(array.shape)
        array += step
        plus = float(np.vdot(weight, model(images, tgt).logits))
        array -= 2 * step
        minus = float(np.vdot(weight, model(images, tgt).logits))
        array += step
        assert np.vdot(grad, step) == pytest.approx((plus - minus) / 2, rel=1e-5, abs=1e-12), name


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_decoding_and_counts(kind: str, form: dict[str, Any], rng: Any) -> None:
    model, images = make(rng, kind, **form)
    for p in model.parameters():
        p.data *= 2.0
    found = model.generate(images, 5, output_attentions=True)
    tgt = np.full((N, 1), 1)
    for t in range(found.ids.shape[1]):
        token = np.where(t < found.lengths, model(images, tgt).logits[:, -1].argmax(-1), 2)
        np.testing.assert_array_equal(found.ids[:, t], token)
        tgt = np.concatenate([tgt, token[:, None]], axis=1)
    whole = model(images, tgt[:, :-1]).attentions
    if form.get("attention") == "none":
        assert whole is None and found.attentions is None
    else:
        np.testing.assert_allclose(found.attentions, whole, rtol=1e-12)
        np.testing.assert_allclose(whole.sum(-1), 1)  # type: ignore[union-attr]
    beams = model.generate(images, 5, beams=3)
    tgt = np.concatenate([np.full((N, 1), 1), beams.ids[:, :-1]], axis=1)
    logits = model(images, tgt).logits
    log_p = np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), beams.ids[..., None], 2)[..., 0]
    counted = np.where(np.arange(tgt.shape[1]) < beams.lengths[:, None], log_p, 0).sum(1)
    np.testing.assert_allclose(beams.scores, counted, rtol=1e-9)
    given = kind in ("states", "maps")
    of_encoder = sum(p.data.size for p in model.encoder.parameters()) if given else 0
    assert models.count_parameters(model.config) + of_encoder == sum(p.data.size for p in model.parameters())


def test_it_learns_where_the_light_is(rng: Any) -> None:
    """End to end in float32: the word for the lit corner, and attention on it."""
    model = Captioner(CaptionerConfig(8, 1, (8,), embedding_size=8, hidden_size=16), rng=rng)
    optimizer = optim.AdamW(model.named_parameters(), lr=0.01, weight_decay=0.0)

    def draw(count: int) -> Any:
        corner = rng.integers(0, 4, count)
        images = 0.1 * rng.standard_normal((count, 1, 4, 4)).astype(np.float32)
        for k, c in enumerate(corner):
            images[k, 0, 2 * (c // 2) : 2 * (c // 2) + 2, 2 * (c % 2) : 2 * (c % 2) + 2] += 1
        return images, np.stack([corner + 3, np.full(count, 2)], axis=1)

    for _ in range(300):
        model.zero_grad()
        model.loss_and_grads(*draw(32))
        optimizer.step()
    images, targets = draw(100)
    assert (model.generate(images, 2).ids == targets).all(1).mean() > 0.95


@pytest.mark.parametrize("dtype", [np.float32, bfloat16])
@pytest.mark.parametrize("kind", ["features", "maps"])
def test_save_and_load(kind: str, dtype: Any, tmp_path: Path, rng: Any) -> None:
    model, images = make(rng, kind, dtype)
    model.eval().save_pretrained(tmp_path)
    encoder = None if kind == "features" else nn.Conv2d(1, F, 3, 2, dtype=dtype)
    loaded = Captioner.from_pretrained(tmp_path, encoder=encoder)
    assert loaded.config == model.config and not loaded.training
    np.testing.assert_array_equal(loaded.generate(images, 4).ids, model.generate(images, 4).ids)


def test_errors_name_what_is_wrong(rng: Any) -> None:
    model, images = make(rng)
    tgt = np.ones((N, T), int)
    features, _ = make(rng, "features")
    calls: list[tuple[Any, str]] = [
        (lambda: model(images, tgt[:1]), "tgt must have a row for each of 2 images, got 1"),
        (lambda: model(images, tgt + V), r"tgt must lie in \[0, 7\)"),
        (lambda: model(np.ones((N, 2, 8, 8)), tgt), "conv2d"),
        (lambda: features(np.ones((N, 4, F + 1)), tgt), r"\[N, P, F\] must have F = 5, got \[2, 4, 6\]"),
        (lambda: Captioner(CaptionerConfig(V), lambda x: x), "feature_size must say"),
        (lambda: model.generate(images, 3, beams=0), "beams must be at least 1"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
