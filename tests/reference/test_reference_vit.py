"""The vision Transformer's NumPy assembly against central differences, parameter by parameter, and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference
from seqkern.reference.vit import bicubic_weights

E, FF, CLASSES = 4, 5, 3


def shapes(heads: tuple[str, ...], distillation: bool, pooler: bool) -> dict[str, tuple[int, ...]]:
    tokens = 2 if distillation else 1
    found: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, E), "embeddings.position_embeddings": (1, tokens + 4, E),
        "embeddings.patch_embeddings.projection.weight": (E, 2, 2, 3), "layernorm.weight": (E,), "layernorm.bias": (E,),
        "embeddings.patch_embeddings.projection.bias": (E,),
    }  # fmt: skip
    if distillation:
        found["embeddings.distillation_token"] = (1, 1, E)
    dense = {f"{name}": (CLASSES, E) for name in heads} | ({"pooler.dense": (E, E)} if pooler else {})
    for k in range(2):
        layer = f"encoder.layer.{k}."
        dense |= {f"{layer}attention.attention.{p}": (E, E) for p in ("query", "key", "value")}
        dense |= {f"{layer}attention.output.dense": (E, E), f"{layer}intermediate.dense": (FF, E)}
        dense |= {f"{layer}output.dense": (E, FF)}
        found |= {f"{layer}layernorm_{p}.{k}": (E,) for p in ("before", "after") for k in ("weight", "bias")}
    return found | {f"{n}.weight": s for n, s in dense.items()} | {f"{n}.bias": s[:1] for n, s in dense.items()}


@pytest.mark.parametrize("size", [(4, 6), (6, 3)], ids=["own_size", "resampled"])
@pytest.mark.parametrize(
    ("heads", "distillation", "pooler"),
    [(("classifier",), False, False), (("cls_classifier", "distillation_classifier"), True, False), ((), True, True)],
    ids=["vit", "deit", "no_head"],
)
def test_every_gradient(
    heads: tuple[str, ...], distillation: bool, pooler: bool, size: tuple[int, int], rng: Any, assert_gradients: Any
) -> None:
    params = {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes(heads, distillation, pooler).items()}
    images, grads, form = rng.standard_normal((2, 2, *size)), {}, {"num_heads": 2, "image_size": (4, 6)}
    output, pull = reference.vit(images, params, grads, **form)

    def random_like(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(random_like, value))
        return None if value is None else rng.standard_normal(value.shape)

    given = reference.ViTOutput(*map(random_like, output))
    assert (given.logits is None, given.pooler_output is None) == (not heads, not pooler)

    def loss() -> Any:
        found, _ = reference.vit(images, params, {}, **form)
        pairs = [*zip(given[:3], found[:3], strict=True), *zip(given.hidden_states, found.hidden_states, strict=True)]
        return sum((g * y).sum() for g, y in pairs if g is not None)

    dimages = pull(given)
    assert set(grads) == set(params)
    assert_gradients(loss, {name: (params[name], grads[name]) for name in params} | {"images": (images, dimages)})


def test_bicubic_weights_sum_to_one_and_keep_their_own_size() -> None:
    np.testing.assert_array_equal(bicubic_weights(5, 5), np.eye(5))
    for new, old in ((1, 7), (3, 2), (14, 5), (5, 14), (4, 1)):
        np.testing.assert_allclose(bicubic_weights(new, old).sum(1), 1, rtol=1e-14)


@pytest.mark.torch
def test_bicubic_weights_are_torchs(rng: Any) -> None:
    torch = pytest.importorskip("torch")
    for old, new in (((3, 4), (5, 2)), ((14, 14), (24, 9)), ((1, 2), (4, 4))):
        table = rng.standard_normal((1, 3, *old))
        expected = torch.nn.functional.interpolate(torch.from_numpy(table), new, mode="bicubic", align_corners=False)
        up, across = (bicubic_weights(n, o) for n, o in zip(new, old, strict=True))
        np.testing.assert_allclose(np.einsum("Ii,Jj,nkij->nkIJ", up, across, table), expected, atol=1e-12)
