"""BERT's NumPy assembly against central differences, parameter by parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference

V, P, T, E, FF, CLASSES = 5, 4, 2, 4, 5, 3


def shapes(head: str | None, types: bool, pooler: bool) -> dict[str, tuple[int, ...]]:
    tables = {"word": V, "position": P} | ({"token_type": T} if types else {})
    found: dict[str, tuple[int, ...]] = {f"embeddings.{n}_embeddings.weight": (k, E) for n, k in tables.items()}
    dense = {"pooler.dense": (E, E)} if pooler else {}
    norms = ["embeddings.LayerNorm"]
    for k in range(2):
        layer = f"encoder.layer.{k}."
        dense |= {f"{layer}attention.self.{p}": (E, E) for p in ("query", "key", "value")}
        dense |= {f"{layer}attention.output.dense": (E, E), f"{layer}intermediate.dense": (FF, E)}
        dense |= {f"{layer}output.dense": (E, FF)}
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    if head == "cls.predictions":
        dense[f"{head}.transform.dense"] = (E, E)
        norms.append(f"{head}.transform.LayerNorm")
        found[f"{head}.bias"] = (V,)
    elif head is not None:
        dense[head] = (CLASSES, E)
    found |= {f"{n}.{kind}": (E,) for n in norms for kind in ("weight", "bias")}
    return found | {f"{n}.weight": s for n, s in dense.items()} | {f"{n}.bias": s[:1] for n, s in dense.items()}


@pytest.mark.parametrize(
    ("head", "types", "pooler", "activation"),
    [
        (None, True, True, "tanh"), ("cls.predictions", True, False, "tanh"), ("qa_outputs", False, False, "tanh"),
        ("classifier", True, False, "tanh"), ("classifier", True, True, "tanh"), ("classifier", False, True, "relu"),
    ],
    ids=["encoder", "masked_lm", "span", "token", "sequence", "sequence_relu"],
)  # fmt: skip
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
def test_every_gradient(
    head: str | None, types: bool, pooler: bool, activation: str, padded: bool, rng: Any, assert_gradients: Any
) -> None:
    params = {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes(head, types, pooler).items()}
    ids, grads = rng.integers(1, V, (2, 3)), {}
    form: dict[str, Any] = {"num_heads": 2, "pooler_activation": activation, "eps": 1e-5}
    if padded:  # the row of the pad id is not read, so that it may be left without a gradient
        form |= {"attention_mask": np.array([[1, 1, 0], [1, 1, 1]]), "padding": (0, None)}
        form |= {"position_ids": rng.integers(0, P, (2, 3))}
        form |= {"token_type_ids": rng.integers(0, T, (2, 3))} if types else {}
    output, pull = reference.bert(ids, params, grads, **form)

    def random_like(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(random_like, value))
        return None if value is None else rng.standard_normal(value.shape)

    given = reference.BERTOutput(*map(random_like, output))
    assert (given.logits is None, given.pooler_output is None) == (head is None, not pooler)

    def loss() -> Any:
        found, _ = reference.bert(ids, params, {}, **form)
        pairs = [*zip(given[:3], found[:3], strict=True), *zip(given.hidden_states, found.hidden_states, strict=True)]
        return sum((g * y).sum() for g, y in pairs if g is not None)

    pull(given)
    assert set(grads) == set(params)
    assert_gradients(loss, {name: (params[name], grads[name]) for name in params})


def test_the_padding_row_gets_no_gradient_of_the_embedding(rng: Any) -> None:
    params = {name: rng.standard_normal(shape) for name, shape in shapes(None, True, False).items()}
    grads: dict[str, Any] = {}
    _, pull = reference.bert(np.array([[0, 1, 2]]), params, grads, num_heads=2, padding=(0, 1))
    pull(reference.BERTOutput(None, rng.standard_normal((1, 3, E)), None, ()))
    for name, row in (("word", 0), ("position", 1)):
        found = grads[f"embeddings.{name}_embeddings.weight"]
        assert not found[row].any() and found[1 - row].any()
