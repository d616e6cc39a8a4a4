"""ViT and DeiT against the NumPy assembly and against Hugging Face's own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from seqkern import models, reference
from seqkern.models import ViT, ViTConfig
from support import parity
from support.models import perturbed

SIZES: dict[str, Any] = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "image_size": (6, 8),
    "patch_size": 2, "num_channels": 2, "num_labels": 3, "initializer_range": 0.3,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "vit": {},
    "no_qkv_bias": {"qkv_bias": False, "pooler": True},
    "wide_patch": {"patch_size": (2, 4), "layer_norm_eps": 1e-3},
    "no_head": {"num_labels": 0, "pooler": True, "pooler_output_size": 5},
    "deit": {"model_type": "deit", "distilled": True},
    "deit_one_head": {"model_type": "deit"},
}
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def make(rng: Any, dtype: Any = np.float64, **changes: Any) -> ViT:
    return perturbed(ViT(ViTConfig(**{**SIZES, **changes}), dtype=dtype, rng=rng), rng)


def images_of(rng: Any, *size: int, dtype: Any = np.float64) -> Any:
    return rng.standard_normal((2, 2, *(size or (6, 8)))).astype(dtype)


@pytest.mark.parametrize("size", [(6, 8), (4, 12), (10, 4)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_every_gradient_against_the_assembly(kind: str, size: tuple[int, int], rng: Any) -> None:
    model, images = make(rng, **KINDS[kind]), images_of(rng, *size)
    bare = {name.removeprefix(model.prefix): value for name, value in model.state_dict().items()}
    form: Any = {"num_heads": 2, "image_size": (6, 8), "eps": model.config.layer_norm_eps}
    grads: dict[str, Any] = {}
    expected, pull_expected = reference.vit(images, bare, grads, **form)
    output, pull = model.vjp(images, output_hidden_states=True)
    given: dict[str, Any] = {}
    for name in reference.ViTOutput._fields:
        found, truth = getattr(output, name), getattr(expected, name)
        assert (found is None) == (truth is None), name
        if name == "hidden_states":
            given[name] = tuple(rng.standard_normal(h.shape) for h in truth)
            assert len(found) == len(truth) == 3
            for a, b in zip(found, truth, strict=True):
                np.testing.assert_allclose(a, b, **CLOSE)
        elif truth is not None:
            given[name] = rng.standard_normal(truth.shape)
            np.testing.assert_allclose(found, truth, **CLOSE, err_msg=name)
    again = model(images)
    np.testing.assert_array_equal(again.last_hidden_state, output.last_hidden_state)
    assert again.hidden_states is None and again.attentions is None
    (dimages,) = pull(models.ModelOutput(**given))
    fields: Any = dict.fromkeys(reference.ViTOutput._fields)
    np.testing.assert_allclose(dimages, pull_expected(reference.ViTOutput(**{**fields, **given})), **CLOSE)
    names = dict(model.named_parameters())
    assert {name.removeprefix(model.prefix) for name in names} == set(grads)
    for name, parameter in names.items():
        np.testing.assert_allclose(parameter.grad, grads[name.removeprefix(model.prefix)], **CLOSE, err_msg=name)
    with pytest.raises(RuntimeError, match="already called"):
        pull(None)


def test_the_bare_gradient_is_that_of_the_first_output(rng: Any) -> None:
    for kind, field in (("vit", "logits"), ("no_head", "last_hidden_state")):
        model, images = make(rng, **KINDS[kind]), images_of(rng)
        results = []
        for wrap in (lambda dy: dy, lambda dy, field=field: models.ModelOutput(**{field: dy})):
            output, pull = model.vjp(images)
            results.append(pull(wrap(np.ones_like(getattr(output, field))))[0])
        np.testing.assert_array_equal(*results)
    _, pull = model.vjp(images)
    with pytest.raises(ValueError, match="gives no logits"):
        pull(models.ModelOutput(logits=np.ones((2, 3))))
    pull(np.zeros_like(output.last_hidden_state))  # a refused call does not count


def test_attentions_are_probabilities_over_all_tokens(rng: Any) -> None:
    model, images = make(rng, model_type="deit"), images_of(rng, 4, 4)
    found = model(images, output_attentions=True).attentions
    assert [a.shape for a in found] == [(2, 2, 6, 6)] * 2
    for probs in found:
        np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-12)
    assert not np.allclose(found[0], found[1])


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_both_namings(kind: str, rng: Any, tmp_path: Any) -> None:
    from safetensors.numpy import save_file

    model, images = make(rng, np.float32, **KINDS[kind]).eval(), images_of(rng, dtype=np.float32)
    model.save_pretrained(tmp_path / "a")
    expected = model(images).last_hidden_state
    loaded = ViT.from_pretrained(tmp_path / "a")
    assert not loaded.training
    assert models.count_parameters(loaded.config) == models.count_parameters(model.config)
    np.testing.assert_array_equal(loaded(images).last_hidden_state, expected)
    short = {name.removeprefix(model.prefix): np.ascontiguousarray(v) for name, v in model.state_dict().items()}
    for part, name in models.vit.IN_MEMORY.items():
        short = {key.replace(f".{name}.", f".{part}."): value for key, value in short.items()}
    short = {key.replace("encoder.layer.", "layers."): value for key, value in short.items()}
    assert "layers.1.attention.o_proj.weight" in short and "layers.1.mlp.fc2.weight" in short
    short["embeddings.mask_token"] = np.zeros((1, 1, 8), np.float32)
    save_file(short, tmp_path / "short.safetensors")
    again = ViT.from_pretrained(tmp_path / "short.safetensors", config=ViTConfig(**{**SIZES, **KINDS[kind]}))
    np.testing.assert_array_equal(again(images).last_hidden_state, expected)
    if model.heads:
        np.testing.assert_array_equal(again(images).logits, model(images).logits)


def test_a_saved_config_comes_back(rng: Any, tmp_path: Any) -> None:
    model = make(rng, np.float32, model_type="deit", distilled=True, pooler_output_size=8)
    model.save_pretrained(tmp_path)
    assert ViT.from_pretrained(tmp_path).config == model.config


def test_errors_name_what_is_wrong(rng: Any, tmp_path: Any) -> None:
    model = make(rng, np.float32)
    for images, error, message in (
        (images_of(rng, 6, 7, dtype=np.float32), ValueError, r"of the patch's \[2, 2\], got .* \[2, 2, 6, 7\]"),
        (images_of(rng, 0, 8, dtype=np.float32), ValueError, r"multiples of the patch's"),
        (np.zeros((1, 3, 6, 8), np.float32), ValueError, "must have 2 channels"),
        (np.zeros((2, 6, 8), np.float32), ValueError, r"must be \[B, C, H, W\]"),
        (np.zeros((1, 2, 6, 8)), TypeError, "must be float32.* got float64"),
        (np.zeros((1, 2, 6, 8), np.uint8), TypeError, "must be float32.* got uint8"),
        ([[0.0]], TypeError, "must be an array, got list"),
    ):
        for call in (model, model.vjp):
            with pytest.raises(error, match=message):
                call(images)
    for changes, message in (
        ({"num_attention_heads": 3}, "multiple of the number of heads"), ({"hidden_act": "sine"}, "activation must be"),
        ({"pooler_act": "sine"}, "pooler_act must be"), ({"model_type": "beit"}, "model_type must be"),
        ({"distilled": True}, "distilled must be False"), ({"patch_size": 7}, "at least patch_size"),
        ({"num_labels": -1}, "num_labels must be at least 0"), ({"image_size": (4, 4, 4)}, "image_size"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make(rng, **changes)
    state = dict(model.state_dict())
    cls = state.pop("vit.embeddings.cls_token")
    with pytest.raises(ValueError, match=r"missing key 'vit\.embeddings\.cls_token'"):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match=r"unexpected key 'decoder\.0\.weight'"):
        model.load_state_dict({**state, "embeddings.cls_token": cls, "decoder.0.weight": cls})
    with pytest.raises(ValueError, match=r"'vit\.embeddings\.cls_token' must be \[1, 1, 8\], got \[1, 8\]"):
        model.load_state_dict({**state, "embeddings.cls_token": cls[0]})


def test_damaged_folders(rng: Any, tmp_path: Any) -> None:
    make(rng, np.float32).save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    values, whole = json.loads(config.read_text()), weights.read_bytes()
    config.write_text(json.dumps({**values, "image_size": 8}))
    with pytest.raises(ValueError, match=r"position_embeddings' must be \[1, 17, 8\], got \[1, 13, 8\]"):
        ViT.from_pretrained(tmp_path)
    config.write_text(json.dumps({**values, "model_type": "deit"}))
    with pytest.raises(ValueError, match=r"missing key 'deit\.embeddings\.distillation_token'"):
        ViT.from_pretrained(tmp_path)
    config.write_text(json.dumps({**values, "model_type": "swin"}))
    with pytest.raises(ValueError, match="model_type 'swin'"):
        ViT.from_pretrained(tmp_path)
    config.write_text(json.dumps(values))
    weights.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="is damaged"):
        ViT.from_pretrained(tmp_path)


def test_parameter_counts(rng: Any) -> None:
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    huge = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120}
    tiny = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    counts = [models.count_parameters(ViTConfig(**sizes)) for sizes in ({}, large, huge | {"patch_size": 14}, tiny)]
    assert counts == [86_567_656, 304_326_632, 632_045_800, 5_717_416]
    assert models.count_parameters(ViTConfig(model_type="deit", distilled=True)) == 87_338_192
    for changes in KINDS.values():
        small = make(rng, **changes)
        assert models.count_parameters(small.config) == sum(p.data.size for p in small.parameters())


def test_dropout_in_training_only(rng: Any) -> None:
    model, images = make(rng, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3), images_of(rng)
    assert not np.array_equal(model(images).logits, model(images).logits)
    model.eval()
    np.testing.assert_array_equal(model(images).logits, model(images).logits)


def test_bfloat16_weights_take_float32_images(rng: Any) -> None:
    model, images = make(rng, np.float32), images_of(rng, 4, 6, dtype=np.float32)
    expected = model(images).logits
    output, pull = model.to("bfloat16").vjp(images)
    assert output.logits.dtype == model.embeddings.cls_token.dtype
    # Eight layers' worth of roundings of 2^-8 on values of order 1.
    np.testing.assert_allclose(output.logits.astype(np.float32), expected, atol=0.25)
    (dimages,) = pull(output.logits)
    assert dimages.dtype == np.float32 and all(p.grad is not None for p in model.parameters())


# --- Hugging Face ---------------------------------------------------------------------------------

THEIRS: dict[str, tuple[str, str]] = {
    "vit": ("ViTConfig", "ViTForImageClassification"),
    "deit": ("DeiTConfig", "DeiTForImageClassificationWithTeacher"),
    "deit_one_head": ("DeiTConfig", "DeiTForImageClassification"),
}
SQUARE: dict[str, Any] = {**SIZES, "image_size": 8}


def pair_of_models(kind: str, folder: Any, scale: float, sizes: dict[str, Any]) -> tuple[Any, ViT]:
    """Theirs with random weights, and ours from the folder they were saved to."""
    transformers = pytest.importorskip("transformers")
    config, architecture = (getattr(transformers, name) for name in THEIRS[kind])
    theirs = parity.randomised(getattr(transformers, architecture.__name__)(config(**sizes)), scale)
    theirs.save_pretrained(folder)
    return theirs, ViT.from_pretrained(folder)


@pytest.mark.torch
@pytest.mark.parametrize("size", [(8, 8), (6, 12)], ids=str)
@pytest.mark.parametrize("kind", THEIRS)
def test_against_hugging_face_in_float64(kind: str, size: tuple[int, int], rng: Any, tmp_path: Any) -> None:
    theirs, ours = pair_of_models(kind, tmp_path, 0.2, SQUARE)
    images, seed = images_of(rng, *size), rng.standard_normal((2, 3))
    exact = parity.their_results(theirs.double(), images, seed, interpolate_pos_encoding=True)
    parity.compare(parity.our_results(ours.to(np.float64), images, seed), parity.own_names(ours, exact))


@pytest.mark.torch
def test_headless_against_hugging_face(rng: Any, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**SQUARE, pooler_output_size=5, pooler_act="gelu")
    theirs = parity.randomised(transformers.ViTModel(config), 0.2)
    theirs.save_pretrained(tmp_path)
    ours, images = ViT.from_pretrained(tmp_path).to(np.float64), images_of(rng, 8, 8)
    parity.compare(parity.our_results(ours, images, None), parity.their_results(theirs.double(), images, None))
    assert ours.config.pooler and not ours.heads


@pytest.mark.torch
@pytest.mark.parametrize("kind", THEIRS)
def test_hugging_face_loads_what_we_save(kind: str, rng: Any, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    ours = make(rng, np.float32, **{**KINDS[kind], "image_size": 8}).eval()
    ours.save_pretrained(tmp_path)
    options: Any = {"attn_implementation": "eager", "output_loading_info": True}
    theirs, info = getattr(transformers, THEIRS[kind][1]).from_pretrained(tmp_path, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    images = images_of(rng, 8, 8, dtype=np.float32)
    import torch

    expected = theirs.eval()(torch.from_numpy(images), output_attentions=True)
    found = ours(images, output_attentions=True)
    # float32: some 60 roundings of 2^-24 in a row, on values of order 10.
    np.testing.assert_allclose(found.logits, expected.logits.detach(), rtol=1e-4, atol=1e-4)
    for a, b in zip(found.attentions, expected.attentions, strict=True):
        np.testing.assert_allclose(a, b.detach(), rtol=1e-4, atol=1e-5)
    fresh = ViT(ours.config)
    fresh.load_state_dict(theirs.state_dict())  # transformers' names in memory
    np.testing.assert_array_equal(fresh.eval()(images).logits, found.logits)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_float32_is_as_accurate_as_hugging_faces(kind: str, rng: Any, tmp_path: Any) -> None:
    check_float32(kind, tmp_path, rng, {**SQUARE, "hidden_size": 32, "intermediate_size": 64}, (12, 12), draws=8)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_base_size_is_as_accurate_as_hugging_faces(kind: str, rng: Any, tmp_path: Any) -> None:
    check_float32(kind, tmp_path, rng, {"num_labels": 1000}, (224, 224) if kind == "vit" else (160, 256))


def check_float32(
    kind: str, folder: Any, rng: Any, sizes: dict[str, Any], size: tuple[int, int], draws: int = 1
) -> None:
    """Arrays of a few values are as accurate as luck has it: those of several draws are taken together."""
    found, exact, naive = [], [], []
    for _ in range(draws):
        theirs, ours = pair_of_models(kind, folder, 0.02, sizes)
        images = rng.standard_normal((1, ours.config.num_channels, *size)).astype(np.float32)
        seed = rng.standard_normal((1, ours.config.num_labels)).astype(np.float32)
        found.append(parity.our_results(ours, images, seed))
        for model, results in ((lambda m: m, naive), (lambda m: m.double(), exact)):
            results.append(
                parity.own_names(ours, parity.their_results(model(theirs), images, seed, interpolate_pos_encoding=True))
            )
    c = ours.config
    stacked = ({name: np.stack([r[name] for r in results]) for name in results[0]} for results in (found, exact, naive))
    parity.compare(*stacked, products=6 * c.num_hidden_layers + 2, terms=c.intermediate_size)
