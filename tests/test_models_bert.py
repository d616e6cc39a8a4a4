"""BERT, RoBERTa and DistilBERT against the NumPy assembly; embeddings, files and errors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from seqkern import models, reference
from seqkern.models import BERT, BERTConfig
from support.bert_kinds import CLOSE, KINDS, make, some_ids

# Our models' names -> those of the assembly, which are BERT's without prefix.
TO_BERT = [
    ("transformer.layer.", "encoder.layer."), (".attention.q_lin.", ".attention.self.query."),
    (".attention.k_lin.", ".attention.self.key."), (".attention.v_lin.", ".attention.self.value."),
    (".attention.out_lin.", ".attention.output.dense."), (".sa_layer_norm.", ".attention.output.LayerNorm."),
    (".ffn.lin1.", ".intermediate.dense."), (".ffn.lin2.", ".output.dense."),
    (".output_layer_norm.", ".output.LayerNorm."), ("vocab_transform.", "cls.predictions.transform.dense."),
    ("vocab_layer_norm.", "cls.predictions.transform.LayerNorm."), ("vocab_projector.", "cls.predictions."),
    ("lm_head.dense.", "cls.predictions.transform.dense."), ("lm_head.bias", "cls.predictions.bias"),
    ("lm_head.layer_norm.", "cls.predictions.transform.LayerNorm."), ("classifier.dense.", "pooler.dense."),
    ("pre_classifier.", "pooler.dense."), ("classifier.out_proj.", "classifier."),
]  # fmt: skip


def berts_name(name: str) -> str:
    for prefix in ("roberta.", "distilbert.", "bert."):
        name = name.removeprefix(prefix)
    for theirs, berts in TO_BERT:
        name = name.replace(theirs, berts)
    return name


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_every_gradient_against_the_assembly(kind: str, padded: bool, rng: Any) -> None:
    model, (ids, call) = make(rng, kind), some_ids(rng, kind, padded)
    c = model.config
    params = {berts_name(name): value for name, value in model.state_dict().items()}
    roberta = c.model_type == "roberta"
    form: dict[str, Any] = {**call, "num_heads": 2, "eps": c.layer_norm_eps, "padding": (c.pad_token_id, None)}
    form["pooler_activation"] = "relu" if c.model_type == "distilbert" else "tanh"
    if roberta:
        kept = ids != c.pad_token_id
        form |= {"position_ids": np.where(kept, kept.cumsum(1), 0) + c.pad_token_id}
        form["padding"] = (c.pad_token_id, c.pad_token_id)
    grads: dict[str, Any] = {}
    expected, pull_expected = reference.bert(ids, params, grads, **form)
    expected = expected._replace(pooler_output=expected.pooler_output if c.has_pooler else None)
    output, pull = model.vjp(ids, output_hidden_states=True, **call)
    given: dict[str, Any] = dict.fromkeys(reference.BERTOutput._fields)
    for name in given:
        found, truth = getattr(output, name), getattr(expected, name)
        assert (found is None) == (truth is None), name
        if name == "hidden_states":
            given[name] = tuple(rng.standard_normal(h.shape) for h in truth)
            for a, b in zip(found, truth, strict=True):
                np.testing.assert_allclose(a, b, **CLOSE)
        elif truth is not None:
            given[name] = rng.standard_normal(truth.shape)
            np.testing.assert_allclose(found, truth, **CLOSE, err_msg=name)
    np.testing.assert_array_equal(model(ids, **call).last_hidden_state, output.last_hidden_state)
    assert pull(models.ModelOutput(**given)) == (None,)
    pull_expected(reference.BERTOutput(**given))
    names = {berts_name(name): parameter for name, parameter in model.named_parameters()}
    assert set(names) == set(grads)
    for name, parameter in names.items():
        np.testing.assert_allclose(parameter.grad, grads[name], **CLOSE, err_msg=name)
    with pytest.raises(RuntimeError, match="already called"):
        pull(None)


def test_the_bare_gradient_is_that_of_the_first_output(rng: Any) -> None:
    for kind, field in (("bert-span", "logits"), ("bert", "last_hidden_state")):
        model, (ids, call) = make(rng, kind), some_ids(rng, kind, True)
        grads = []
        for wrap in (lambda dy: dy, lambda dy, field=field: models.ModelOutput(**{field: dy})):
            output, pull = model.vjp(ids, **call)
            model.zero_grad()
            pull(wrap(np.ones_like(getattr(output, field))))
            grads.append(model.embeddings.words.weight.grad)
        np.testing.assert_array_equal(*grads)
    output, pull = model.vjp(ids)
    with pytest.raises(ValueError, match="gives no logits"):
        pull(models.ModelOutput(logits=np.ones((2, 3))))
    pull(models.ModelOutput(pooler_output=output.pooler_output))  # a refused call does not count


def test_padding_changes_nothing(rng: Any) -> None:
    for kind in ("bert", "roberta", "distilbert-sequence"):
        model, (ids, _) = make(rng, kind), some_ids(rng, kind, False)
        padded = np.concatenate([ids, np.full((2, 2), model.config.pad_token_id)], 1)
        mask = np.ones((2, 7))
        mask[:, 5:] = 0
        output, alone = model(padded, mask, output_attentions=True), model(ids)
        np.testing.assert_allclose(output.last_hidden_state[:, :5], alone.last_hidden_state, **CLOSE)
        assert [a.shape for a in output.attentions] == [(2, 2, 7, 7)] * 2
        assert not output.attentions[0][..., 5:].any()
        np.testing.assert_allclose(output.attentions[1].sum(-1), 1, rtol=1e-12)
        for pooling in ("mean", "cls"):
            found = model.embed(padded, mask, pooling=pooling)
            np.testing.assert_allclose(found, model.embed(ids, pooling=pooling), **CLOSE)


def test_embeddings(rng: Any) -> None:
    model, (ids, call) = make(rng, "bert"), some_ids(rng, "bert", True)
    output, mask = model(ids, **call), call["attention_mask"].astype(bool)
    mean = np.stack([y[keep].mean(0) for y, keep in zip(output.last_hidden_state, mask, strict=True)])
    expected = {"mean": mean, "cls": output.last_hidden_state[:, 0], "pooler": output.pooler_output}
    for pooling, vectors in expected.items():
        np.testing.assert_allclose(model.embed(ids, **call, pooling=pooling), vectors, **CLOSE)
        found = model.embed(ids, **call, pooling=pooling, normalise=True)
        np.testing.assert_allclose(found, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), **CLOSE)
    assert not model.embed(ids, np.zeros_like(ids), normalise=True).any()
    with pytest.raises(ValueError, match="pooling must be one of"):
        model.embed(ids, pooling="max")
    with pytest.raises(ValueError, match="has no pooler"):
        make(rng, "distilbert").embed(ids, pooling="pooler")


@pytest.mark.parametrize("kind", KINDS)
def test_files_with_and_without_prefix_and_old_names(kind: str, rng: Any, tmp_path: Any) -> None:
    from safetensors.numpy import save_file

    model, (ids, call) = make(rng, kind, np.float32).eval(), some_ids(rng, kind, True)
    model.save_pretrained(tmp_path / "a")
    loaded = BERT.from_pretrained(tmp_path / "a")
    assert not loaded.training and loaded.config == BERT.from_pretrained(tmp_path / "a").config
    assert models.count_parameters(loaded.config) == models.count_parameters(model.config)
    bare = {name.removeprefix(model.prefix): value for name, value in model.state_dict().items()}
    heads = ("cls.", "lm_head.", "vocab_", "classifier.", "pre_classifier.", "qa_outputs.")
    full = {name if name.startswith(heads) else model.prefix + name: value for name, value in bare.items()}
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
           for name, value in full.items()}  # fmt: skip
    old[f"{model.prefix}embeddings.position_ids"] = np.arange(12)[None]
    if kind == "bert-masked_lm":
        old |= {"cls.predictions.decoder.weight": bare["embeddings.word_embeddings.weight"].copy()}
        old |= {"cls.predictions.decoder.bias": bare["cls.predictions.bias"].copy()}
        old |= {f"cls.seq_relationship.{n}": np.zeros(s, np.float32) for n, s in (("weight", (2, 8)), ("bias", 2))}
    if kind == "roberta-sequence":
        old |= {f"roberta.pooler.dense.{n}": np.zeros(s, np.float32) for n, s in (("weight", (8, 8)), ("bias", 8))}
    expected = model(ids, **call)
    for state in (bare, full, old):
        save_file(state, tmp_path / "one.safetensors")
        config = BERTConfig(**{**vars(model.config), "head": None, "pooler": None, "num_labels": 7})
        config.head = "token" if kind == "bert-token" else None
        for again in (loaded, BERT.from_pretrained(tmp_path / "one.safetensors", config=config)):
            found = again(ids, **call)
            for field in ("logits", "last_hidden_state", "pooler_output"):
                np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


def test_a_pretraining_checkpoint_keeps_its_pooler(rng: Any, tmp_path: Any) -> None:
    model, (ids, _) = make(rng, "bert-masked_lm", np.float32, pooler=True).eval(), some_ids(rng, "bert", False)
    model.save_pretrained(tmp_path)
    loaded = BERT.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded(ids).pooler_output, model(ids).pooler_output)
    assert loaded.config.pooler
    assert models.count_parameters(loaded.config) == sum(p.data.size for p in loaded.parameters())


def test_parameter_counts(rng: Any) -> None:
    counts = [
        models.count_parameters(c)
        for c in (BERTConfig(), BERTConfig.large(), BERTConfig.roberta(), BERTConfig.distilbert())
    ]
    assert counts == [109_482_240, 335_141_888, 124_645_632, 66_362_880]
    heads = {h: models.count_parameters(BERTConfig(head=h)) for h in ("masked_lm", "sequence", "span")}
    assert heads == {"masked_lm": 109_514_298, "sequence": 109_483_778, "span": 108_893_186}
    for kind in KINDS:
        small = make(rng, kind)
        assert models.count_parameters(small.config) == sum(p.data.size for p in small.parameters()), kind


def test_dropout_in_training_only(rng: Any) -> None:
    for kind in ("bert-sequence", "roberta-sequence", "distilbert-span"):
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.5}
        model, (ids, call) = make(rng, kind, **dropout).train(), some_ids(rng, kind, True)
        assert not np.array_equal(model(ids, **call).logits, model(ids, **call).logits)
        np.testing.assert_array_equal(model(ids, **call).last_hidden_state, model(ids, **call).last_hidden_state)
        model.eval()
        np.testing.assert_array_equal(model(ids, **call).logits, model(ids, **call).logits)


def test_bfloat16(rng: Any) -> None:
    model, (ids, call) = make(rng, "bert-masked_lm", np.float32), some_ids(rng, "bert", True)
    expected = model(ids, **call).last_hidden_state
    output, pull = model.to("bfloat16").vjp(ids, **call)
    # Ten layers' worth of roundings of 2^-8 on values of order 1.
    np.testing.assert_allclose(output.last_hidden_state.astype(np.float32), expected, atol=0.3)
    pull(output.logits)
    assert all(p.grad is not None for p in model.parameters())
    assert model.embed(ids, **call, normalise=True).dtype == output.logits.dtype


# --- errors -----------------------------------------------------------------------------------


def test_bad_calls(rng: Any) -> None:
    model = make(rng, "bert")
    ids = np.zeros((2, 3), int)
    for call, error, message in (
        ({"ids": np.zeros((1, 0), int)}, ValueError, "at least one token"),
        ({"ids": np.zeros((1, 13), int)}, ValueError, "12 positions, got a sequence of 13"),
        ({"ids": ids + 17}, ValueError, r"ids must lie in \[0, 17\)"),
        ({"ids": ids - 1}, ValueError, r"ids must lie in \[0, 17\)"),
        ({"ids": ids[0]}, ValueError, r"ids must be \[B, S\]"),
        ({"ids": ids * 1.0}, TypeError, "ids must be integers"),
        ({"ids": [[1]]}, TypeError, "ids must be an array"),
        ({"attention_mask": np.ones((2, 4))}, ValueError, "attention_mask must be"),
        ({"token_type_ids": ids + 2}, ValueError, r"token_type_ids must lie in \[0, 2\)"),
        ({"token_type_ids": ids[:1]}, ValueError, r"token_type_ids must be \[B, S\] = \[2, 3\], got \[1, 3\]"),
        ({"token_type_ids": ids * 1.0}, TypeError, "token_type_ids must be integers"),
        ({"position_ids": ids + 12}, ValueError, r"position_ids must lie in \[0, 12\)"),
        ({"position_ids": [[0]]}, TypeError, "position_ids must be an array"),
    ):
        for use in (model, model.vjp):
            with pytest.raises(error, match=message):
                use(**{"ids": ids, **call})
    with pytest.raises(ValueError, match="has no token types"):
        make(rng, "distilbert")(ids, token_type_ids=ids)
    with pytest.raises(ValueError, match="11 positions, got a sequence of 12"):
        make(rng, "roberta")(np.zeros((1, 12), int))
    assert model(np.zeros((0, 3), int)).last_hidden_state.shape == (0, 3, 8)


def test_bad_configs(rng: Any) -> None:
    for changes, error, message in (
        ({"num_attention_heads": 3}, ValueError, "multiple of the number of heads"),
        ({"hidden_act": "sine"}, ValueError, "activation must be one of"),
        ({"model_type": "electra"}, ValueError, "model_type must be one of"),
        ({"head": "ner"}, ValueError, "head must be one of"),
        ({"num_labels": 0}, ValueError, "num_labels must be at least 1"),
        ({"hidden_size": "8"}, TypeError, "hidden_size must be an integer"),
        ({"layer_norm_eps": "x"}, TypeError, "layer_norm_eps must be a number"),
        ({"pad_token_id": 17}, ValueError, "pad_token_id must be below vocab_size = 17"),
        ({"model_type": "roberta", "pad_token_id": None}, ValueError, "pad_token_id must be given"),
        ({"model_type": "roberta", "pad_token_id": 11}, ValueError, "must exceed pad_token_id"),
        ({"hidden_dropout_prob": 2.0}, ValueError, r"must lie in \[0, 1\]"),
    ):
        with pytest.raises(error, match=message):
            make(rng, "bert", **changes)


def test_bad_checkpoints(rng: Any, tmp_path: Any) -> None:
    model = make(rng, "bert-sequence", np.float32)
    state = dict(model.state_dict())
    words = state.pop("bert.embeddings.word_embeddings.weight")
    short = "embeddings.word_embeddings.weight"
    with pytest.raises(ValueError, match=r"missing key 'bert\.embeddings\.word_embeddings\.weight'"):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match="unexpected key 'extra'"):
        model.load_state_dict({**state, short: words, "extra": words})
    with pytest.raises(ValueError, match=r"word_embeddings\.weight' must be \[17, 8\], got \[16, 8\]"):
        model.load_state_dict({**state, short: words[1:]})
    masked = make(rng, "bert-masked_lm")
    with pytest.raises(ValueError, match=r"'cls\.predictions\.decoder\.weight' differs"):
        masked.load_state_dict({**masked.state_dict(), "cls.predictions.decoder.weight": words + 1})
    model.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, values = weights.read_bytes(), json.loads(config.read_text())
    for changes, message in (
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
        ({"is_decoder": True}, "is_decoder must be False"),
        ({"hidden_size": 10**9}, "the config is of .* parameters, the weights are but"),
        ({"num_hidden_layers": 3}, r"missing key 'bert\.encoder\.layer\.2"),
        ({"num_hidden_layers": 1}, r"unexpected key 'bert\.encoder\.layer\.1"),
        ({"vocab_size": 18}, r"must be \[18, 8\], got \[17, 8\]"),
        ({"model_type": "roberta"}, r"missing key 'classifier\.dense\.weight'"),
    ):
        config.write_text(json.dumps({**values, **changes}))
        with pytest.raises(ValueError, match=message):
            BERT.from_pretrained(tmp_path)
    config.write_text(json.dumps(values))
    weights.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="is damaged"):
        BERT.from_pretrained(tmp_path)
