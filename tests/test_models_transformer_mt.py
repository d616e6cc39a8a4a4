"""TransformerMT against a NumPy assembly and torch.nn.Transformer; incremental decoding; files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from seqkern import models, nn, optim, reference
from seqkern.models import TransformerMT, TransformerMTConfig
from seqkern.models._beam import shift_right
from seqkern.models.transformer_mt import _Steps
from support.models import perturbed

V, W, D, HEADS, N, S, T = 11, 9, 8, 2, 3, 5, 4
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
FORMS: list[dict[str, Any]] = [
    {},
    {"positions": "learned", "norm_first": True, "activation": "gelu", "tie_weights": False},
    {"share_embeddings": True, "tgt_vocab_size": V},
]
NAMES = ["post", "pre-learned", "shared"]
LENGTHS = np.array([5, 2, 4])


def make(rng: Any, dtype: Any = np.float64, **changes: Any) -> TransformerMT:
    sizes: dict[str, Any] = {"src_vocab_size": V, "tgt_vocab_size": W, "d_model": D, "num_heads": HEADS,
                             "num_encoder_layers": 2, "num_decoder_layers": 3, "dim_feedforward": 12,
                             "dropout": 0.0, "max_positions": 7}  # fmt: skip
    return perturbed(TransformerMT(TransformerMTConfig(**{**sizes, **changes}), dtype=dtype, rng=rng), rng)


def batch(rng: Any, **form: Any) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, V, (N, S)), rng.integers(0, form.get("tgt_vocab_size", W), (N, T))


# --- against the NumPy assembly and torch -----------------------------------------------------


def assembly(src: Any, tgt: Any, p: Any, config: Any, keep: Any, grads: dict[str, Any]) -> Any:
    """logits and a gradient function, from reference functions; gradients go to `grads`."""
    table = reference.sinusoidal_positions(config.max_positions, config.d_model)
    form = {"num_heads": config.num_heads, "activation": config.activation, "norm_first": config.norm_first}

    def add(name: str, grad: Any) -> None:
        grads[name] = grads.get(name, 0) + grad

    def embedded(ids: Any, side: str) -> Any:
        rows, saved = reference.embedding_forward(ids, p[f"{side}.embedding.weight"])
        places = p.get(f"{side}.positions.weight")
        x = config.d_model**0.5 * rows + (table if places is None else config.d_model**0.5 * places)[: ids.shape[1]]

        def pull(dx: Any) -> None:
            add(f"{side}.embedding.weight", reference.embedding_backward(config.d_model**0.5 * dx, saved).dweight)
            if places is not None:
                dplaces = np.zeros_like(places)
                dplaces[: ids.shape[1]] = config.d_model**0.5 * dx.sum(0)
                add(f"{side}.positions.weight", dplaces)

        return x, pull

    def stack(x: Any, kind: str, count: int, **options: Any) -> Any:
        name, pulls = f"transformer.{kind}.", []
        for k in range(count):
            x, pull = reference.transformer_layer(x, p, grads, f"{name}layers.{k}.", **form, **options)
            pulls.append(pull)
        x, saved = reference.layer_norm_forward(x, x.shape[-1:], p[f"{name}norm.weight"], p[f"{name}norm.bias"])

        def pull(dx: Any) -> Any:
            found = reference.layer_norm_backward(dx, saved)
            add(f"{name}norm.weight", found.dweight)
            add(f"{name}norm.bias", found.dbias)
            dx, dmemory = found.dx, 0
            for pull in reversed(pulls):
                dx, *rest = pull(dx)
                dmemory = dmemory + rest[0] if rest else 0
            return dx, dmemory

        return x, pull

    x, pull_src = embedded(src, "source")
    z, pull_tgt = embedded(tgt, "target")
    mask = {"attn_mask": keep[:, None, None, :]}
    memory, pull_encoder = stack(x, "encoder", config.num_encoder_layers, options=mask)
    y, pull_decoder = stack(
        z, "decoder", config.num_decoder_layers, memory=memory, options={"is_causal": True}, memory_options=mask
    )
    logits, saved = reference.linear_forward(y, p["head.weight"])

    def pull(dlogits: Any) -> None:
        found = reference.linear_backward(dlogits, saved)
        add("head.weight", found.dweight)
        dz, dmemory = pull_decoder(found.dx)
        pull_tgt(dz)
        pull_src(pull_encoder(dmemory)[0])

    return logits, pull


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_logits_and_every_gradient_against_the_assembly(form: dict[str, Any], rng: Any) -> None:
    model, (src, tgt) = make(rng, **form), batch(rng, **form)
    grads: dict[str, Any] = {}
    keep = np.arange(S) < LENGTHS[:, None]
    expected, pull_expected = assembly(src, tgt, model.state_dict(), model.config, keep, grads)
    output, pull = model.vjp(src, tgt, src_lengths=LENGTHS)
    np.testing.assert_allclose(output.logits, expected, **CLOSE)
    np.testing.assert_array_equal(model(src, tgt, keep.astype(int)).logits, output.logits)
    weight = rng.standard_normal(expected.shape)
    pull_expected(weight)
    assert pull(weight) == (None, None)
    tied = {"head.weight": "target.embedding.weight"} if model.config.tie_weights else {}
    if model.config.share_embeddings:
        tied = {"head.weight": "source.embedding.weight", "target.embedding.weight": "source.embedding.weight"}
    for other, name in tied.items():
        grads[name] = grads[name] + grads.pop(other)
    named = dict(model.named_parameters())
    assert set(named) == set(grads)
    for name, parameter in named.items():
        np.testing.assert_allclose(parameter.grad, grads[name], err_msg=name, **CLOSE)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # torch of its own defaults
@pytest.mark.parametrize("form", FORMS[:2], ids=NAMES[:2])
def test_torch_weights_give_torch_results(form: dict[str, Any], rng: Any) -> None:
    import torch

    model, (src, tgt) = make(rng, **form), batch(rng, **form)
    c = model.config
    theirs = torch.nn.Transformer(
        D, HEADS, 2, 3, 12, 0.0, c.activation, batch_first=True, norm_first=c.norm_first, dtype=torch.float64
    )
    model.transformer.load_state_dict(theirs.state_dict())
    output, pull = model.vjp(src, tgt, src_lengths=LENGTHS)
    p = {k: torch.tensor(v, requires_grad=True) for k, v in model.state_dict().items()}
    table = torch.from_numpy(np.asarray(reference.sinusoidal_positions(7, D)))

    def embedded(ids: Any, side: str) -> Any:
        places = D**0.5 * p[f"{side}.positions.weight"] if c.positions == "learned" else table
        return D**0.5 * p[f"{side}.embedding.weight"][torch.from_numpy(ids)] + places[: ids.shape[1]]

    padding = torch.from_numpy(np.arange(S) >= LENGTHS[:, None])
    causal = torch.from_numpy(~np.tri(T, dtype=bool))
    y = theirs(embedded(src, "source"), embedded(tgt, "target"), tgt_mask=causal, src_key_padding_mask=padding,
               memory_key_padding_mask=padding)  # fmt: skip
    head = p["target.embedding.weight" if c.tie_weights else "head.weight"]
    logits = y @ head.T
    np.testing.assert_allclose(output.logits, logits.detach().numpy(), **CLOSE)
    weight = rng.standard_normal(logits.shape)
    pull(models.ModelOutput(logits=weight, last_hidden_state=weight[..., :1] * np.ones(D)))
    ((logits * torch.from_numpy(weight)).sum() + (y * torch.from_numpy(weight[..., :1])).sum()).backward()
    expected = {f"transformer.{k}": v.grad for k, v in theirs.named_parameters()}
    expected |= {k: v.grad for k, v in p.items() if k not in expected and v.grad is not None}
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad, expected[name].numpy(), err_msg=name, **CLOSE)


def test_loss_is_smoothed_and_shifted(rng: Any) -> None:
    model, (src, targets) = make(rng, label_smoothing=0.3), batch(rng)
    targets[0, 3] = -100
    loss = model.loss_and_grads(src, targets)
    logits = model(src, shift_right(targets, 1, 2)).logits
    assert loss == pytest.approx(float(reference.cross_entropy(logits, targets, label_smoothing=0.3)), rel=1e-10)
    assert all(p.grad is not None for p in model.parameters())
    np.testing.assert_array_equal(shift_right(np.array([[5, 2, -100]]), 1, 2), [[1, 5, 2]])


# --- decoding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_decoding_with_cache_equals_the_whole(form: dict[str, Any], rng: Any) -> None:
    model, (src, tgt) = make(rng, **form).eval(), batch(rng, **form)
    whole = model(src, tgt, src_lengths=LENGTHS).logits
    padding = np.arange(S) >= LENGTHS[:, None]
    steps = _Steps(model, model._encode(src, padding), padding, beams=1)
    found = np.stack([steps(tgt[:, t]) for t in range(T)], axis=1)
    np.testing.assert_allclose(found, whole, **CLOSE)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_greedy_sampling_and_beams(form: dict[str, Any], rng: Any) -> None:
    rows, model = 20, make(rng, **{**form, "dropout": 0.4})
    for p in model.parameters():
        p.data *= 1.5
    src, lengths = rng.integers(0, V, (rows, S)), rng.integers(1, S + 1, rows)
    found = model.generate(src, 6, src_lengths=lengths)
    assert model.training and model.source.dropout.training
    model.eval()
    tgt, done = np.full((rows, 1), 1), np.zeros(rows, bool)
    for t in range(found.ids.shape[1]):  # from the beginning each time
        token = np.where(done, 2, model(src, tgt, src_lengths=lengths).logits[:, -1].argmax(-1))
        np.testing.assert_array_equal(found.ids[:, t], token)
        done |= token == 2
        tgt = np.concatenate([tgt, token[:, None]], axis=1)
    found = model.generate(src, 7, src_lengths=lengths, beams=4)
    tgt = np.concatenate([np.full((rows, 1), 1), found.ids[:, :-1]], axis=1)
    logits = model(src, tgt, src_lengths=lengths).logits
    log_p = np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), found.ids[..., None], 2)[..., 0]
    counted = np.where(np.arange(tgt.shape[1]) < found.lengths[:, None], log_p, 0).sum(1)
    np.testing.assert_allclose(found.scores, counted / ((5 + found.lengths) / 6) ** 0.6, rtol=1e-9)
    drawn = model.generate(src, 6, temperature=1.0, top_p=0.9, seed=1)
    np.testing.assert_array_equal(drawn.ids, model.generate(src, 6, temperature=1.0, top_p=0.9, seed=1).ids)


def test_it_learns_to_reverse(rng: Any) -> None:
    """End to end in float32, with the paper's schedule: sequences come out backwards."""
    config = TransformerMTConfig(12, 12, 32, 4, 1, 1, 64, dropout=0.0, share_embeddings=True)
    model = TransformerMT(config, rng=rng)
    optimizer = optim.AdamW(model.named_parameters(), betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0)

    def draw(count: int) -> Any:
        src = rng.integers(3, 12, (count, 4))
        return src, np.concatenate([src[:, ::-1], np.full((count, 1), 2)], axis=1)

    for step in range(300):
        model.zero_grad()
        model.loss_and_grads(*draw(64))
        optimizer.lr = 0.4 * optim.noam(step, d_model=32, warmup_steps=100)
        optimizer.step()
    src, targets = draw(100)
    found = model.eval().generate(src, 5, beams=2)
    assert found.ids.shape == targets.shape and (found.ids == targets).all(1).mean() > 0.9


# --- sizes, files and errors ------------------------------------------------------------------


def test_parameter_counts(rng: Any) -> None:
    """The paper's 65 M and 213 M are round figures; these are exact, for 37,000 shared pieces."""
    counts = [models.count_parameters(c(37_000)) for c in (TransformerMTConfig.base, TransformerMTConfig.large)]
    assert counts == [63_084_544, 214_249_472]
    for form in FORMS:
        model = make(rng, **form)
        assert models.count_parameters(model.config) == sum(p.data.size for p in model.parameters())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bfloat16])
@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_save_and_load(form: dict[str, Any], dtype: Any, tmp_path: Path, rng: Any) -> None:
    model, (src, _) = make(rng, dtype, **form).eval(), batch(rng)
    model.save_pretrained(tmp_path)
    loaded = TransformerMT.from_pretrained(tmp_path)
    assert not loaded.training and loaded.config == model.config
    assert len(list(loaded.parameters())) == len(list(model.parameters()))
    np.testing.assert_array_equal(loaded.generate(src, 5).ids, model.generate(src, 5).ids)
    for name, value in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype
        np.testing.assert_array_equal(loaded.state_dict()[name], value)


def test_errors_name_what_is_wrong(rng: Any) -> None:
    model, (src, tgt) = make(rng), batch(rng)
    long = np.zeros((N, 8), int)
    calls: list[tuple[Any, str]] = [
        (lambda: model(src[0], tgt), r"src must be \[N, length\]"),
        (lambda: model(src, tgt + W), r"tgt must lie in \[0, 9\)"),
        (lambda: model(src, tgt[:2]), "tgt must have src's 3 rows, got 2"),
        (lambda: model(long, tgt), "src: the model has 7 positions, got 8"),
        (lambda: model(src, long), "tgt: the model has 7 positions, got 8"),
        (lambda: model.generate(long, 2), "src: the model has 7 positions"),
        (lambda: model.generate(src, 8), "max_new_tokens: the model has 7 positions, got 8"),
        (lambda: model(src, tgt, np.ones((N, S + 1))), r"attention_mask must be \[N, S\]"),
        (lambda: model(src, tgt, np.ones((N, S)), src_lengths=LENGTHS), "not both"),
        (lambda: make(rng, share_embeddings=True), "share_embeddings needs"),
        (lambda: make(rng, positions="rotary"), "positions must be one of"),
        (lambda: model.vjp(src, tgt)[1](models.ModelOutput(attentions=(src,))), "attentions and cache"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_kv_cache_rows_follow(rng: Any) -> None:
    cache, key = nn.KVCache(), rng.standard_normal((3, 2, 4, 5))
    cache.reorder(np.array([0, 0, 1]))  # still empty
    cache.append(key, 2 * key)
    cache.reorder(np.array([2, 2, 0]))
    np.testing.assert_array_equal(cache.key, key[[2, 2, 0]])
    np.testing.assert_array_equal(cache.value, 2 * key[[2, 2, 0]])
