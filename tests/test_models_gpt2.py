"""GPT2 against a NumPy assembly of reference functions and against Hugging Face's own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from seqkern import models, ops, reference
from seqkern.models import GPT2, GPT2Config
from support.models import perturbed

SIZES: dict[str, Any] = {"vocab_size": 17, "n_positions": 12, "n_embd": 8, "n_layer": 2, "n_head": 2}
QUIET: dict[str, Any] = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.3}
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
# float32: some 100 roundings of 2^-24 in a row, on values of order 10.
CLOSE32 = {"rtol": 1e-4, "atol": 1e-4}


def make(rng: Any, dtype: Any = np.float64, **changes: Any) -> GPT2:
    return perturbed(GPT2(GPT2Config(**{**SIZES, **QUIET, **changes}), dtype=dtype, rng=rng), rng)


def assembly(ids: Any, p: Any, heads: int) -> Any:
    """Logits and final states of GPT-2, from Hugging Face's names, in nothing but reference functions."""
    t = "transformer."

    def norm(x: Any, name: str) -> Any:
        return reference.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

    def conv1d(x: Any, name: str) -> Any:
        return reference.linear(x, p[f"{name}.weight"].T, p[f"{name}.bias"])

    x = p[f"{t}wte.weight"][ids] + p[f"{t}wpe.weight"][: ids.shape[1]]
    for i in range(SIZES["n_layer"]):
        h = f"{t}h.{i}."
        parts = np.split(conv1d(norm(x, f"{h}ln_1"), f"{h}attn.c_attn"), 3, axis=-1)
        q, k, v = (y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2) for y in parts)
        out = reference.scaled_dot_product_attention(q, k, v, is_causal=True).swapaxes(1, 2).reshape(x.shape)
        x = x + conv1d(out, f"{h}attn.c_proj")
        inner = reference.gelu(conv1d(norm(x, f"{h}ln_2"), f"{h}mlp.c_fc"), approximate="tanh")
        x = x + conv1d(inner, f"{h}mlp.c_proj")
    y = norm(x, f"{t}ln_f")
    return reference.linear(y, p[f"{t}wte.weight"]), y


def test_forward_and_every_gradient_against_the_assembly(rng: Any) -> None:
    model, ids = make(rng), rng.integers(0, 17, (2, 5))
    logits, last = assembly(ids, model.state_dict(), 2)
    output, pull = model.vjp(ids, output_hidden_states=True)
    np.testing.assert_allclose(output.logits, logits, **CLOSE)
    np.testing.assert_allclose(output.last_hidden_state, last, **CLOSE)
    np.testing.assert_array_equal(model(ids).logits, output.logits)
    weight = rng.standard_normal(logits.shape)
    assert pull(weight) == (None,)
    for name, parameter in model.named_parameters():  # slope along one random direction each
        direction, eps = rng.standard_normal(parameter.shape), 1e-5
        values = []
        for step in (eps, -eps):
            parameter.data += step * direction
            values.append(float((weight * assembly(ids, model.state_dict(), 2)[0]).sum()))
            parameter.data -= step * direction
        slope = (values[0] - values[1]) / (2 * eps)
        assert np.vdot(parameter.grad, direction) == pytest.approx(slope, rel=1e-6, abs=1e-6), name
    with pytest.raises(RuntimeError, match="already called"):
        pull(weight)


def test_gradient_of_hidden_states(rng: Any) -> None:
    model, ids = make(rng), rng.integers(0, 17, (2, 5))
    output, pull = model.vjp(ids, output_hidden_states=True)
    grads = tuple(rng.standard_normal(h.shape) for h in output.hidden_states)
    pull(models.ModelOutput(hidden_states=grads))
    p = dict(model.named_parameters())["transformer.wpe.weight"]
    direction, eps = rng.standard_normal(p.shape), 1e-5
    values = []
    for step in (eps, -eps):
        p.data += step * direction
        states = model(ids, output_hidden_states=True).hidden_states
        values.append(sum(float(np.vdot(g, h)) for g, h in zip(grads, states, strict=True)))
        p.data -= step * direction
    assert np.vdot(p.grad, direction) == pytest.approx((values[0] - values[1]) / (2 * eps), rel=1e-6)


def test_cache_equals_no_cache_with_left_padding(rng: Any) -> None:
    model, ids = make(rng), rng.integers(0, 17, (2, 6))
    mask = np.array([[0, 0, 1, 1, 1, 1], [1] * 6])
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    whole = model(ids, mask, position_ids=positions).logits
    cache = model.new_cache()
    parts = [
        model(ids[:, a:b], mask[:, :b], position_ids=positions[:, a:b], cache=cache).logits
        for a, b in ((0, 3), (3, 4), (4, 6))
    ]
    np.testing.assert_allclose(np.concatenate(parts, 1)[:, 2:], whole[:, 2:], **CLOSE)
    alone = model(ids[:1, 2:]).logits
    np.testing.assert_allclose(whole[:1, 2:], alone, **CLOSE)


def test_generation(rng: Any) -> None:
    model, ids = make(rng), rng.integers(0, 17, (2, 3))
    greedy = model.generate(ids, 6, temperature=0)
    for t in range(3, 9):  # without the cache
        np.testing.assert_array_equal(greedy[:, t], model(greedy[:, :t]).logits[:, -1].argmax(-1))
    streamed = list(model.generate(ids, 6, temperature=0, stream=True))
    np.testing.assert_array_equal(np.stack(streamed, 1), greedy[:, 3:])
    np.testing.assert_array_equal(model.generate(ids, 6, top_k=1), greedy)
    np.testing.assert_array_equal(model.generate(ids, 6, top_p=1e-9), greedy)
    options: Any = {"top_p": 0.9, "repetition_penalty": 1.3, "seed": 5}
    np.testing.assert_array_equal(model.generate(ids, 6, **options), model.generate(ids, 6, **options))
    ended = model.generate(ids[:1], 6, temperature=0, eos_token_id=int(greedy[0, 3]))
    assert ended.shape == (1, 4)
    unlike = model.generate(ids, 9, temperature=0, repetition_penalty=1e9)
    assert all(len(set(row[3:])) == 9 and not set(row[:3]) & set(row[3:]) for row in unlike.tolist())
    assert model.generate(ids, 10, seed=0).shape == (2, 13)


def test_files_both_namings_and_shards(rng: Any, tmp_path: Any) -> None:
    from safetensors.numpy import save_file

    model, ids = make(rng, np.float32), rng.integers(0, 17, (2, 5))
    model.eval().save_pretrained(tmp_path / "a")
    expected = model(ids).logits
    loaded = GPT2.from_pretrained(tmp_path / "a")
    assert not loaded.training and loaded.config == model.config
    np.testing.assert_array_equal(loaded(ids).logits, expected)
    bare = {k.removeprefix("transformer."): np.ascontiguousarray(v) for k, v in model.state_dict().items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 12, 12), np.float32)
    save_file(bare, tmp_path / "bare.safetensors")
    np.testing.assert_array_equal(
        GPT2.from_pretrained(tmp_path / "bare.safetensors", config=model.config)(ids).logits, expected
    )
    shards = tmp_path / "shards"
    shards.mkdir()
    names = sorted(bare)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({k: bare[k] for k in keys}, shards / file)
    index = {"weight_map": {k: file for file, keys in parts.items() for k in keys}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    (shards / "config.json").write_text((tmp_path / "a/config.json").read_text())
    np.testing.assert_array_equal(GPT2.from_pretrained(shards)(ids).logits, expected)


def test_errors_name_what_is_wrong(rng: Any, tmp_path: Any) -> None:
    model = make(rng, np.float32)
    state = dict(model.state_dict())
    wpe = state.pop("transformer.wpe.weight")
    with pytest.raises(ValueError, match=r"missing key 'transformer\.wpe\.weight'"):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match="unexpected key 'extra'"):
        model.load_state_dict({**state, "wpe.weight": wpe, "extra": wpe})
    with pytest.raises(ValueError, match=r"'transformer\.wpe\.weight' must be \[12, 8\], got \[11, 8\]"):
        model.load_state_dict({**state, "wpe.weight": wpe[1:]})
    with pytest.raises(ValueError, match=r"'lm_head\.weight' differs"):
        model.load_state_dict({**state, "wpe.weight": wpe, "lm_head.weight": state["transformer.wte.weight"] + 1})
    for ids, message in (
        (np.zeros((1, 0), int), "at least one token"), (np.zeros((1, 13), int), "12 positions"),
        (np.full((1, 2), 17), r"\[0, 17\)"), (np.zeros(3, int), r"ids must be \[B, S\]"),
    ):  # fmt: skip
        for call in (model, lambda x: model.generate(x, 1)):
            with pytest.raises(ValueError, match=message):
                call(ids)
    with pytest.raises(ValueError, match="max_new_tokens: the model has 12 positions"):
        model.generate(np.zeros((1, 5), int), 9)
    with pytest.raises(ValueError, match="pad on the left"):
        model.generate(np.zeros((1, 2), int), 1, attention_mask=np.array([[1, 0]]))
    with pytest.raises(ValueError, match="attention_mask must be"):
        model(np.zeros((1, 2), int), np.ones((1, 3)))
    model.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="is damaged"):
        GPT2.from_pretrained(tmp_path)
    config.write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="model_type 'llama'"):
        GPT2.from_pretrained(tmp_path)


def test_dropout_in_training_and_not_in_generation(rng: Any) -> None:
    model, ids = make(rng, embd_pdrop=0.3, attn_pdrop=0.3, resid_pdrop=0.3), rng.integers(0, 17, (2, 5))
    assert not np.array_equal(model(ids).logits, model(ids).logits)
    greedy = model.generate(ids, 4, temperature=0)
    assert model.training and model.layers[0].dropout.training
    np.testing.assert_array_equal(model.eval().generate(ids, 4, temperature=0), greedy)


def test_int8_weights(rng: Any, tmp_path: Any) -> None:
    """The int8 model is the float one with every matrix rounded to its scale; it is not written."""
    model = make(rng, np.float32).eval()
    ids = rng.integers(0, model.config.vocab_size, (2, 5))
    rounded = make(rng, np.float32).eval()
    rounded.load_state_dict(model.state_dict())
    tables = {id(rounded.wte.weight), id(rounded.wpe.weight)}
    for parameter in rounded.parameters():
        if parameter.data.ndim == 2 and id(parameter) not in tables:
            q, scale = ops.quantize_int8(parameter.data)
            parameter.data = q * scale[:, None]
    hidden = rounded(ids).last_hidden_state
    q, scale = ops.quantize_int8(rounded.wte.weight.data)
    got = model.quantize_int8()(ids).logits
    assert np.abs(got - hidden @ (q * scale[:, None]).T).max() < 1e-5
    assert model.generate(ids, 3, temperature=0).shape == (2, 8)
    with pytest.raises(TypeError, match="before quantising"):
        model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="have no gradient"):
        model.vjp(ids)


@pytest.mark.torch
def test_against_hugging_face(rng: Any, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    ours = make(rng, np.float32).eval()
    ours.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = rng.integers(0, 17, (2, 6))
    tensor, dlogits = torch.from_numpy(ids), rng.standard_normal((2, 6, 17)).astype(np.float32)
    expected = theirs(tensor, output_hidden_states=True, output_attentions=True)
    found, pull = ours.vjp(ids, output_hidden_states=True, output_attentions=True)
    np.testing.assert_allclose(found.logits, expected.logits.detach(), **CLOSE32)
    for field in ("hidden_states", "attentions"):
        for a, b in zip(getattr(found, field), getattr(expected, field), strict=True):
            np.testing.assert_allclose(a, b.detach(), **CLOSE32)
    (expected.logits * torch.from_numpy(dlogits)).sum().backward()
    pull(dlogits)
    grads = {n: p.grad.numpy() for n, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        grad = parameter.grad.T if ours._transposed(name) else parameter.grad
        np.testing.assert_allclose(grad, grads[name], rtol=1e-4, atol=1e-4 * abs(grads[name]).max(), err_msg=name)
    theirs.save_pretrained(tmp_path / "theirs")
    np.testing.assert_array_equal(GPT2.from_pretrained(tmp_path / "theirs")(ids).logits, ours(ids).logits)
    GPT2(ours.config).load_state_dict(theirs.state_dict())
    mask = np.array([[0, 0, 1, 1, 1, 1], [1] * 6])
    options: Any = {"attention_mask": torch.from_numpy(mask), "max_new_tokens": 6, "do_sample": False,
                    "pad_token_id": 16, "eos_token_id": 16}  # fmt: skip
    expected_ids = theirs.generate(tensor, **options).numpy()
    greedy = ours.generate(ids, 6, temperature=0, attention_mask=mask, eos_token_id=16)
    np.testing.assert_array_equal(greedy, expected_ids)


@pytest.mark.torch
def test_gpt1_against_hugging_face(rng: Any, tmp_path: Any) -> None:
    """Post-norm layers under GPT-1's names: outputs and all gradients in float64, files both ways, the cache."""
    transformers = pytest.importorskip("transformers")
    import torch

    config = transformers.OpenAIGPTConfig(
        vocab_size=17, n_positions=12, n_embd=8, n_layer=2, n_head=2, initializer_range=0.3,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.OpenAIGPTLMHeadModel(config).double().eval()
    for p in theirs.parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, 0.5, 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GPT2.from_pretrained(tmp_path / "theirs")
    assert not ours.config.norm_first and ours.config.activation_function == "gelu_new"
    assert models.count_parameters(ours.config) == sum(p.data.size for p in ours.parameters())
    ids, dlogits = rng.integers(0, 17, (2, 6)), rng.standard_normal((2, 6, 17))
    expected = theirs(torch.from_numpy(ids), output_hidden_states=True, output_attentions=True)
    found, pull = ours.vjp(ids, output_hidden_states=True, output_attentions=True)
    np.testing.assert_allclose(found.logits, expected.logits.detach(), **CLOSE)
    for field in ("hidden_states", "attentions"):
        for a, b in zip(getattr(found, field), getattr(expected, field), strict=True):
            np.testing.assert_allclose(a, b.detach(), **CLOSE)
    (expected.logits * torch.from_numpy(dlogits)).sum().backward()
    pull(dlogits)
    grads = {n: p.grad.numpy() for n, p in theirs.named_parameters()}
    assert set(grads) == {n for n, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        grad = parameter.grad.T if ours._transposed(name) else parameter.grad
        np.testing.assert_allclose(grad, grads[name], rtol=1e-8, atol=1e-9 * abs(grads[name]).max(), err_msg=name)
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.OpenAIGPTLMHeadModel.from_pretrained(tmp_path / "ours", dtype=torch.float64).eval()
    np.testing.assert_allclose(again(torch.from_numpy(ids)).logits.detach(), expected.logits.detach(), **CLOSE)
    greedy = ours.generate(ids, 5, temperature=0)
    for t in range(6, 11):  # without the cache
        np.testing.assert_array_equal(greedy[:, t], ours(greedy[:, :t]).logits[:, -1].argmax(-1))


@pytest.mark.parametrize("act", ["gelu_new", "relu", "silu"])
def test_gpt1_files(act: str, rng: Any, tmp_path: Any) -> None:
    model = GPT2(GPT2Config.named("gpt1", **SIZES, activation_function=act), rng=rng).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "openai-gpt"
    loaded, ids = GPT2.from_pretrained(tmp_path), rng.integers(0, 17, (2, 5))
    assert loaded.config == model.config and "transformer.tokens_embed.weight" in loaded.state_dict()
    np.testing.assert_array_equal(loaded(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match="GPT-1's file knows no"):
        GPT2(GPT2Config.named("gpt1", **SIZES, n_inner=5)).save_pretrained(tmp_path)
