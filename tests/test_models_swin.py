"""Swin against a NumPy assembly of reference functions, window by window, and against Hugging Face's own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from seqkern import models, reference
from seqkern.models import Swin, SwinConfig
from support import parity
from support.models import perturbed

SIZES: dict[str, Any] = {
    "image_size": 12, "patch_size": 2, "num_channels": 2, "embed_dim": 4, "depths": (2, 2), "num_heads": (2, 4),
    "window_size": 3, "mlp_ratio": 2.0, "num_labels": 3, "initializer_range": 0.3, "drop_path_rate": 0.0,
}  # fmt: skip
# 12: whole windows, and the second stage is one; 14 x 18: windows and squares padded; 9 x 13: patches too.
IMAGES = [(12, 12), (14, 18), (9, 13)]
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def make(rng: Any, dtype: Any = np.float64, **changes: Any) -> Swin:
    return perturbed(Swin(SwinConfig(**{**SIZES, **changes}), dtype=dtype, rng=rng), rng)


def images_of(rng: Any, *size: int, dtype: Any = np.float64) -> Any:
    return rng.standard_normal((2, 2, *(size or (12, 12)))).astype(dtype)


def attend(x: Any, places: Any, p: Any, heads: int, size: int) -> Any:
    """Attention between the tokens `[B, n, C]` of a window; places: the row, column and region of each."""
    q, k, v = (
        reference.linear(x, p[f"self.{n}.weight"], p.get(f"self.{n}.bias"))
        .reshape(*x.shape[:2], heads, -1)
        .swapaxes(1, 2)
        for n in ("query", "key", "value")
    )
    (row, column, region), table = places, p["self.relative_position_bias_table"]
    index = (row[:, None] - row + size - 1) * (2 * size - 1) + column[:, None] - column + size - 1
    bias = np.moveaxis(table[index], 2, 0) + np.where(region[:, None] == region, 0.0, -100.0)
    out = reference.scaled_dot_product_attention(q, k, v, np.broadcast_to(bias, (len(x), *bias.shape)))
    return reference.linear(out.swapaxes(1, 2).reshape(x.shape), p["output.dense.weight"], p["output.dense.bias"])


def layer(x: Any, p: Any, heads: int, size: int, shift: int) -> Any:
    """x `[B, rows, columns, C]`, one window after the other."""

    def norm(z: Any, name: str) -> Any:
        return reference.layer_norm(z, z.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

    rows, columns = x.shape[1:3]
    window = min(size, rows, columns)
    shift = 0 if min(rows, columns) <= size else shift
    height, width = -(-rows // window) * window, -(-columns // window) * window
    z = np.zeros((len(x), height, width, x.shape[3]))
    z[:, :rows, :columns] = norm(x, "layernorm_before")
    y, inner = np.zeros_like(z), {k[len("attention.") :]: v for k, v in p.items() if k.startswith("attention.")}
    for top in range(0, height, window):
        for left in range(0, width, window):
            r, c = (np.arange(window) + top)[:, None], np.arange(window) + left
            # The roll brings the first rows below the last ones: those of a window that wrapped are strangers.
            region = 2 * (r + shift >= height) + (c + shift >= width)
            spots = [np.broadcast_to(a, (window, window)).reshape(-1) for a in (r - top, c - left, region)]
            source = ((r + shift) % height, (c + shift) % width)
            tokens = z[:, source[0], source[1]].reshape(len(x), -1, x.shape[3])
            out = attend(tokens, spots, inner, heads, size)
            y[:, source[0], source[1]] = out.reshape(len(x), window, window, -1)
    x = x + y[:, :rows, :columns]
    hidden = reference.gelu(
        reference.linear(norm(x, "layernorm_after"), p["intermediate.dense.weight"], p["intermediate.dense.bias"])
    )
    return x + reference.linear(hidden, p["output.dense.weight"], p["output.dense.bias"])


def assembly(images: Any, state: Any, config: Any) -> Any:
    """Logits, final tokens and hidden states from Hugging Face's names, in nothing but reference functions."""
    p = {name.removeprefix("swin."): value for name, value in state.items()}

    def norm(z: Any, name: str) -> Any:
        return reference.layer_norm(z, z.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

    def below(prefix: str) -> Any:
        return {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}

    step, name = config.patch_size, "embeddings.patch_embeddings.projection"
    images = np.pad(images, [(0, 0), (0, 0), *((0, -n % step) for n in images.shape[2:])])
    patches = reference.conv2d(images, p[f"{name}.weight"], p[f"{name}.bias"], step)
    x = norm(np.moveaxis(patches, 1, 3), "embeddings.norm")
    states = [x]
    for k, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        prefix = f"encoder.layers.{k}."
        for i in range(depth):
            shift = config.window_size // 2 if i % 2 else 0
            x = layer(x, below(f"{prefix}blocks.{i}."), heads, config.window_size, shift)
        if k + 1 < len(config.depths):
            x = np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
            squares = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
            x = norm(np.concatenate(squares, -1), f"{prefix}downsample.norm")
            x = reference.linear(x, p[f"{prefix}downsample.reduction.weight"])
        states.append(x)
    states = [h.reshape(len(h), -1, h.shape[3]) for h in states]
    y = norm(states[-1], "layernorm")
    return reference.linear(y.mean(1), p["classifier.weight"], p["classifier.bias"]), y, states


@pytest.mark.parametrize("size", [*IMAGES, (4, 10), (1, 1)], ids=str)
def test_outputs_against_the_assembly(size: tuple[int, int], rng: Any) -> None:
    model, images = make(rng), images_of(rng, *size)
    logits, last, states = assembly(images, model.state_dict(), model.config)
    output = model(images, output_hidden_states=True, output_attentions=True)
    np.testing.assert_allclose(output.logits, logits, **CLOSE)
    np.testing.assert_allclose(output.last_hidden_state, last, **CLOSE)
    np.testing.assert_allclose(output.pooler_output, last.mean(1), **CLOSE)
    for found, expected in zip(output.hidden_states, states, strict=True):
        np.testing.assert_allclose(found, expected, **CLOSE)
    for probs in output.attentions:
        np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.vjp(images)[0].logits, output.logits)


@pytest.mark.parametrize("size", [(14, 18), (9, 7)], ids=str)
def test_every_gradient_against_slopes_of_the_assembly(size: tuple[int, int], rng: Any) -> None:
    model, images = make(rng), images_of(rng, *size)
    output, pull = model.vjp(images, output_hidden_states=True)
    given = models.ModelOutput(
        logits=rng.standard_normal(output.logits.shape),
        last_hidden_state=rng.standard_normal(output.last_hidden_state.shape),
        hidden_states=tuple(rng.standard_normal(h.shape) for h in output.hidden_states),
    )
    (dimages,) = pull(given)

    def loss() -> float:
        logits, last, states = assembly(images, model.state_dict(), model.config)
        pairs = [
            (given.logits, logits),
            (given.last_hidden_state, last),
            *zip(given.hidden_states, states, strict=True),
        ]
        return sum(float(np.vdot(g, y)) for g, y in pairs)

    arrays = {name: (p.data, p.grad) for name, p in model.named_parameters()} | {"images": (images, dimages)}
    for name, (value, grad) in arrays.items():  # slope along one random direction each
        direction, eps = rng.standard_normal(value.shape), 1e-6
        value += eps * direction
        above = loss()
        value -= 2 * eps * direction
        slope = (above - loss()) / (2 * eps)
        value += eps * direction
        assert np.vdot(grad, direction) == pytest.approx(slope, rel=1e-6, abs=1e-6), name
    with pytest.raises(RuntimeError, match="already called"):
        pull(given)


def test_the_bare_gradient_is_that_of_the_logits_or_the_mean(rng: Any) -> None:
    for labels, field in ((3, "logits"), (0, "pooler_output")):
        model, images = make(rng, num_labels=labels), images_of(rng)
        results = []
        for wrap in (lambda dy: dy, lambda dy, field=field: models.ModelOutput(**{field: dy})):
            output, pull = model.vjp(images)
            results.append(pull(wrap(np.ones_like(getattr(output, field))))[0])
        np.testing.assert_array_equal(*results)
    _, pull = model.vjp(images)
    with pytest.raises(ValueError, match="gives no logits"):
        pull(models.ModelOutput(logits=np.ones((2, 3))))


def test_stochastic_depth_drops_whole_branches_of_samples(rng: Any) -> None:
    """With p = 1 in the last layer its branches are gone; in eval mode they are back."""
    model, images = make(rng, depths=(1, 2), drop_path_rate=1.0), images_of(rng)
    dropped, pull = model.vjp(images)
    pull(np.ones_like(dropped.logits))
    grads = {n: p.grad for n, p in model.named_parameters()}
    last = "swin.encoder.layers.1.blocks.1."
    assert not any(np.any(grad) for name, grad in grads.items() if name.startswith(last))
    assert np.any(grads["swin.encoder.layers.0.blocks.0.intermediate.dense.weight"])
    assert not np.allclose(model.eval()(images).logits, dropped.logits)
    model = make(rng, drop_path_rate=0.5, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    assert not np.array_equal(model(images).logits, model(images).logits)
    np.testing.assert_array_equal(model.eval()(images).logits, model(images).logits)


def test_positions_of_any_grid(rng: Any) -> None:
    model, images = make(rng, use_absolute_embeddings=True), images_of(rng)
    state = model.state_dict()
    assert state["swin.embeddings.position_embeddings"].shape == (1, 36, 4)
    for size in ((12, 12), (8, 18)):
        images = images_of(rng, *size)
        output, pull = model.vjp(images)
        weight = rng.standard_normal(output.logits.shape)
        pull(weight)
        p, eps = dict(model.named_parameters())["swin.embeddings.position_embeddings"], 1e-6
        direction = rng.standard_normal(p.shape)
        p.data += eps * direction
        above = np.vdot(weight, model(images).logits)
        p.data -= 2 * eps * direction
        slope = (above - np.vdot(weight, model(images).logits)) / (2 * eps)
        assert np.vdot(p.grad, direction) == pytest.approx(slope, rel=1e-6)
        model.zero_grad()


@pytest.mark.parametrize(
    "changes", [{}, {"qkv_bias": False}, {"num_labels": 0}, {"use_absolute_embeddings": True}], ids=str
)
def test_files_both_namings_and_counts(changes: Any, rng: Any, tmp_path: Any) -> None:
    from safetensors.numpy import save_file

    model, images = make(rng, np.float32, **changes).eval(), images_of(rng, dtype=np.float32)
    assert models.count_parameters(model.config) == sum(p.data.size for p in model.parameters())
    model.save_pretrained(tmp_path / "a")
    expected = model(images).last_hidden_state
    loaded = Swin.from_pretrained(tmp_path / "a")
    assert not loaded.training and loaded.config == model.config
    np.testing.assert_array_equal(loaded(images).last_hidden_state, expected)
    names = {"attention.self.query": "attention.q_proj", "attention.output.dense": "attention.o_proj",
             "attention.self.key": "attention.k_proj", "attention.self.value": "attention.v_proj",
             "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
             "self.relative_position": "relative_position_bias.relative_position"}  # fmt: skip
    short = {name.removeprefix("swin."): np.ascontiguousarray(value) for name, value in model.state_dict().items()}
    for ours, theirs in names.items():
        short = {name.replace(ours, theirs): value for name, value in short.items()}
    short["encoder.layers.0.blocks.0.attention.self.relative_position_index"] = np.zeros((9, 9), np.int64)
    save_file(short, tmp_path / "short.safetensors")
    again = Swin.from_pretrained(tmp_path / "short.safetensors", config=model.config)
    np.testing.assert_array_equal(again(images).last_hidden_state, expected)


def test_published_sizes() -> None:
    small, base = {"depths": (2, 2, 18, 2)}, {"embed_dim": 128, "num_heads": (4, 8, 16, 32), "depths": (2, 2, 18, 2)}
    counts = [models.count_parameters(SwinConfig(**sizes)) for sizes in ({}, small, base)]
    assert counts == [28_288_354, 49_606_258, 87_768_224]


def test_errors_name_what_is_wrong(rng: Any, tmp_path: Any) -> None:
    model = make(rng, np.float32)
    for images, error, message in (
        (np.zeros((1, 3, 8, 8), np.float32), ValueError, "must have 2 channels"),
        (np.zeros((1, 2, 0, 8), np.float32), ValueError, r"at least 1, got \[1, 2, 0, 8\]"),
        (np.zeros((2, 8, 8), np.float32), ValueError, r"must be \[B, C, H, W\]"),
        (np.zeros((1, 2, 8, 8)), TypeError, "must be float32.* got float64"),
        ([[0.0]], TypeError, "must be an array, got list"),
    ):
        for call in (model, model.vjp):
            with pytest.raises(error, match=message):
                call(images)
    for changes, message in (
        ({"num_heads": (2,)}, "of one length"), ({"num_heads": (3, 4)}, "multiple of the number of heads"),
        ({"window_size": 0}, "window_size must be at least 1"), ({"hidden_act": "sine"}, "activation must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make(rng, **changes)
    state = dict(model.state_dict())
    name = "swin.encoder.layers.1.blocks.0.attention.self.relative_position_bias_table"
    table = state.pop(name)
    with pytest.raises(ValueError, match=rf"missing key '{name}' \(expected \[25, 4\]\)"):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match=rf"'{name}' must be \[25, 4\], got \[24, 4\]"):
        model.load_state_dict({**state, name: table[1:]})
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "depths": [2, 2, 2]}))
    with pytest.raises(ValueError, match="of one length"):
        Swin.from_pretrained(tmp_path)
    config.write_text(json.dumps({**values, "model_type": "vit"}))
    with pytest.raises(ValueError, match="model_type 'vit'"):
        Swin.from_pretrained(tmp_path)


def test_bfloat16(rng: Any) -> None:
    model, images = make(rng, np.float32, initializer_range=0.1), images_of(rng, 14, 18, dtype=np.float32)
    expected = model(images).logits
    output, pull = model.to("bfloat16").vjp(images)
    # Some 30 roundings of 2^-9 in a row, on values of order 1.
    np.testing.assert_allclose(output.logits.astype(np.float32), expected, atol=0.1)
    (dimages,) = pull(output.logits)
    assert dimages.dtype == np.float32 and all(p.grad is not None for p in model.parameters())


# --- Hugging Face ---------------------------------------------------------------------------------


def pair_of_models(folder: Any, scale: float, **sizes: Any) -> tuple[Any, Swin]:
    """Theirs with random weights, and ours from the folder they were saved to."""
    transformers = pytest.importorskip("transformers")
    theirs = parity.randomised(transformers.SwinForImageClassification(transformers.SwinConfig(**sizes)), scale)
    theirs.save_pretrained(folder)
    return theirs, Swin.from_pretrained(folder)


@pytest.mark.torch
@pytest.mark.parametrize("size", IMAGES, ids=str)
def test_against_hugging_face_in_float64(size: tuple[int, int], rng: Any, tmp_path: Any) -> None:
    theirs, ours = pair_of_models(tmp_path, 0.2, **SIZES)
    images, seed = images_of(rng, *size), rng.standard_normal((2, 3))
    exact = parity.their_results(theirs.double(), images, seed)
    parity.compare(parity.our_results(ours.to(np.float64), images, seed), parity.own_names(ours, exact))


@pytest.mark.torch
def test_headless_against_hugging_face(rng: Any, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = parity.randomised(transformers.SwinModel(transformers.SwinConfig(**SIZES)), 0.2)
    theirs.save_pretrained(tmp_path)
    ours, images = Swin.from_pretrained(tmp_path).to(np.float64), images_of(rng, 14, 12)
    assert ours.classifier is None
    exact = parity.their_results(theirs.double(), images, None)
    assert "pooler_output" in exact
    parity.compare(parity.our_results(ours, images, None), exact)


@pytest.mark.torch
def test_hugging_face_loads_what_we_save(rng: Any, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    ours, images = make(rng, np.float32).eval(), images_of(rng, 14, 18, dtype=np.float32)
    ours.save_pretrained(tmp_path)
    options: Any = {"attn_implementation": "eager", "output_loading_info": True}
    theirs, info = transformers.SwinForImageClassification.from_pretrained(tmp_path, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    expected = theirs.eval()(torch.from_numpy(images), output_attentions=True)
    found = ours(images, output_attentions=True)
    # float32: some 60 roundings of 2^-24 in a row, on values of order 10.
    np.testing.assert_allclose(found.logits, expected.logits.detach(), rtol=1e-4, atol=1e-4)
    for a, b in zip(found.attentions, expected.attentions, strict=True):
        np.testing.assert_allclose(a, b.detach(), rtol=1e-4, atol=1e-5)
    fresh = Swin(ours.config)
    fresh.load_state_dict(theirs.state_dict())  # transformers' names in memory
    np.testing.assert_array_equal(fresh.eval()(images).logits, found.logits)


@pytest.mark.torch
def test_float32_is_as_accurate_as_hugging_faces(rng: Any, tmp_path: Any) -> None:
    check_float32(tmp_path, rng, (36, 30), **{**SIZES, "embed_dim": 16, "depths": (2, 2, 2), "num_heads": (1, 2, 4)})


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("size", [(224, 224), (200, 250)], ids=str)
def test_tiny_is_as_accurate_as_hugging_faces(size: tuple[int, int], rng: Any, tmp_path: Any) -> None:
    check_float32(tmp_path, rng, size, num_labels=1000)


def check_float32(folder: Any, rng: Any, size: tuple[int, int], **sizes: Any) -> None:
    theirs, ours = pair_of_models(folder, 0.02, **sizes)
    c = ours.config
    images = rng.standard_normal((1, c.num_channels, *size)).astype(np.float32)
    seed = rng.standard_normal((1, c.num_labels)).astype(np.float32)
    naive = parity.their_results(theirs, images, seed)
    exact = parity.their_results(theirs.double(), images, seed)
    width = c.embed_dim * 2 ** (len(c.depths) - 1)
    parity.compare(
        parity.our_results(ours, images, seed), parity.own_names(ours, exact), parity.own_names(ours, naive),
        products=6 * sum(c.depths) + len(c.depths) + 1, terms=int(c.mlp_ratio * width),
    )  # fmt: skip
