"""Seq2Seq: gradients by central differences and against a torch twin; decoding against brute force."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from seqkern import models, optim
from seqkern.models import Seq2Seq, Seq2SeqConfig
from seqkern.models._beam import decode

V, W, H, N, S, T = 9, 7, 6, 3, 5, 4
FORMS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True, "reverse_source": True},
    {"attention": "luong", "score": "dot", "reverse_source": True},
    {"attention": "luong", "score": "general", "num_layers": 2, "bidirectional": True},
    {"attention": "luong", "score": "concat"},
    {"attention": "bahdanau", "num_layers": 2, "bidirectional": True},
    {"attention": "bahdanau", "reverse_source": True},
]
NAMES = ["-".join(str(v) for v in form.values()) or "plain" for form in FORMS]
LENGTHS = np.array([5, 2, 4])


def make(rng: Any, dtype: Any = np.float64, **changes: Any) -> Seq2Seq:
    return Seq2Seq(Seq2SeqConfig(V, W, **{"embedding_size": 4, "hidden_size": H, **changes}), dtype=dtype, rng=rng)


def batch(rng: Any) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, V, (N, S)), rng.integers(0, W, (N, T))


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_gradients_by_central_differences(form: dict[str, Any], cell: str, rng: Any) -> None:
    model, (src, tgt) = make(rng, cell=cell, **form), batch(rng)
    output, pull = model.vjp(src, tgt, src_lengths=LENGTHS)
    assert output.logits.shape == (N, T, W)
    np.testing.assert_array_equal(output.logits, model(src, tgt, src_lengths=LENGTHS).logits)
    weight = rng.standard_normal(output.logits.shape)
    assert pull(weight) == (None, None)
    for name, parameter in model.named_parameters():  # slope along one random direction each
        direction, eps = rng.standard_normal(parameter.shape), 1e-5
        values = []
        for step in (eps, -eps):
            parameter.data += step * direction
            values.append(float((weight * model(src, tgt, src_lengths=LENGTHS).logits).sum()))
            parameter.data -= step * direction
        slope = (values[0] - values[1]) / (2 * eps)
        assert np.vdot(parameter.grad, direction) == pytest.approx(slope, rel=1e-6, abs=1e-8), name


def torch_twin(model: Seq2Seq, state: Any, src: Any, tgt: Any) -> tuple[Any, Any]:
    """logits [T, W] and attention of one unpadded pair of rows, in torch, step by step."""
    import torch

    c, p = model.config, state

    def core(prefix: str, inputs: int, size: int, bidirectional: bool) -> Any:
        kind = torch.nn.LSTM if c.cell == "lstm" else torch.nn.GRU
        module = kind(inputs, size, c.num_layers, bidirectional=bidirectional, dtype=torch.float64)
        own = {name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)}
        return lambda *args: torch.func.functional_call(module, own, args)

    read = src[::-1].copy() if c.reverse_source else src
    encoder = core("encoder.", c.embedding_size, H // c.directions, c.bidirectional)
    memory, hx = encoder(p["embedding.weight"][torch.from_numpy(read)])

    def joined(h: Any) -> Any:
        return torch.cat([h[0::2], h[1::2]], dim=-1) if c.bidirectional else h

    hx = tuple(joined(h) for h in hx) if c.cell == "lstm" else joined(hx)
    feeds = c.attention == "bahdanau"
    decoder = core("decoder.rnn.", c.embedding_size + H * feeds, H, False)
    a, logits, looked_at = "decoder.attention.", [], []

    def look(q: Any) -> Any:
        if feeds:
            left, right = p[f"{a}query_proj.weight"] @ q, memory @ p[f"{a}key_proj.weight"].T
            scores = torch.tanh(left + right) @ p[f"{a}v"]
        elif c.score == "dot":
            scores = memory @ q
        elif c.score == "general":
            scores = memory @ (q @ p[f"{a}weight"])
        else:
            pairs = torch.cat([q.expand(len(memory), -1), memory], dim=1)
            scores = torch.tanh(pairs @ p[f"{a}weight"].T) @ p[f"{a}v"]
        weights = torch.softmax(scores, 0)
        looked_at.append(weights.flip(0) if c.reverse_source else weights)
        return weights @ memory

    for token in tgt:
        x = p["decoder.embedding.weight"][int(token)]
        if feeds:
            context = look((hx[0] if c.cell == "lstm" else hx)[-1])
            x = torch.cat([x, context])
        y, hx = decoder(x[None], hx)
        features = y[0]
        if c.attention != "none":
            context = context if feeds else look(y[0])
            features = torch.tanh(p["decoder.combine.weight"] @ torch.cat([context, y[0]]))
        logits.append(p["decoder.head.weight"] @ features + p["decoder.head.bias"])
    return torch.stack(logits), torch.stack(looked_at) if looked_at else None


@pytest.mark.torch
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_a_torch_twin_agrees(form: dict[str, Any], cell: str, rng: Any) -> None:
    import torch

    model, (src, tgt) = make(rng, cell=cell, **form), batch(rng)
    output, pull = model.vjp(src, tgt, src_lengths=LENGTHS)
    weight = rng.standard_normal(output.logits.shape)
    pull(weight)
    state = {k: torch.tensor(v, requires_grad=True) for k, v in model.state_dict().items()}
    total = torch.zeros((), dtype=torch.float64)
    for n, length in enumerate(LENGTHS):
        logits, attention = torch_twin(model, state, src[n, :length], tgt[n])
        np.testing.assert_allclose(output.logits[n], logits.detach().numpy(), rtol=1e-10, atol=1e-12)
        if attention is None:
            assert output.attentions is None
        else:
            assert output.attentions is not None
            np.testing.assert_allclose(output.attentions[n, :, :length], attention.detach().numpy(), atol=1e-12)
            assert (output.attentions[n, :, length:] == 0).all()
        total = total + (logits * torch.from_numpy(weight[n])).sum()
    total.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad, state[name].grad.numpy(), rtol=1e-9, atol=1e-11, err_msg=name)


def test_loss_and_grads_shifts_and_ignores(rng: Any) -> None:
    model, (src, targets) = make(rng, attention="luong"), batch(rng)
    targets[1, 2:] = -100
    loss = model.loss_and_grads(src, targets)
    tgt = np.concatenate([np.full((N, 1), 1), targets[:, :-1]], axis=1)
    tgt[tgt == -100] = 0  # whatever stands there, no target after it counts
    logits = model(src, tgt).logits
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    n, t = np.nonzero(targets != -100)
    assert loss == pytest.approx(-log_p[n, t, targets[n, t]].mean(), rel=1e-12)
    assert all(p.grad is not None for p in model.parameters())


def test_masks_and_lengths_say_the_same(rng: Any) -> None:
    model, (src, tgt) = make(rng, attention="bahdanau"), batch(rng)
    mask = np.arange(S) < LENGTHS[:, None]
    expected = model(src, tgt, src_lengths=LENGTHS).logits
    np.testing.assert_array_equal(model(src, tgt, mask.astype(np.int64)).logits, expected)
    src[~mask] = 0  # what padding holds does not matter
    np.testing.assert_array_equal(model(src, tgt, src_lengths=LENGTHS).logits, expected)


# --- decoding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{}, {"attention": "luong"}, {"attention": "bahdanau", "num_layers": 2}])
def test_greedy_and_sampling(form: dict[str, Any], rng: Any) -> None:
    model, (src, _) = make(rng, dropout=0.5, **form), batch(rng)
    found = model.generate(src, 6, src_lengths=LENGTHS, output_attentions=True)
    assert model.training and model.decoder.dropout.training
    model.eval()
    tgt, log_p = np.full((N, 1), 1), np.zeros(N)
    done = np.zeros(N, bool)
    for t in range(found.ids.shape[1]):  # from the beginning each time
        logits = model(src, tgt, src_lengths=LENGTHS).logits[:, -1]
        token = np.where(done, 2, logits.argmax(-1))
        np.testing.assert_array_equal(found.ids[:, t], token)
        best = logits.max(-1) - np.log(np.exp(logits).sum(-1))
        log_p += np.where(done, 0, best)
        done |= token == 2
        tgt = np.concatenate([tgt, token[:, None]], axis=1)
    np.testing.assert_allclose(found.scores, log_p, rtol=1e-10)
    if form:
        whole = model(src, tgt[:, :-1], src_lengths=LENGTHS).attentions
        np.testing.assert_array_equal(found.attentions, whole)
    options: dict[str, Any] = {"temperature": 1.5, "seed": 3}
    np.testing.assert_array_equal(model.generate(src, 6, **options).ids, model.generate(src, 6, **options).ids)
    other = model.generate(src, 6, temperature=1.5, seed=4)
    assert not np.array_equal(other.ids, model.generate(src, 6, **options).ids)


class Tables:
    """Steps whose logits are a random function of the tokens so far: every sequence has its own."""

    def __init__(self, rows: int, vocab: int, owner: np.ndarray) -> None:
        self.vocab, self.owner, self.prefix = vocab, owner, [()] * rows

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        self.prefix = [(*p, int(t)) for p, t in zip(self.prefix, tokens, strict=True)]
        return np.stack([self.logits(n, p) for n, p in zip(self.owner, self.prefix, strict=True)])

    def logits(self, row: int, prefix: tuple[int, ...]) -> np.ndarray:
        return 2 * np.random.default_rng([int(row), *prefix]).standard_normal(self.vocab)

    def reorder(self, rows: np.ndarray) -> None:
        assert (self.owner[rows] == self.owner).all()  # beams stay with their source
        self.prefix = [self.prefix[r] for r in rows]


def score_of(table: Tables, row: int, tokens: tuple[int, ...], alpha: float) -> float:
    total = 0.0
    for t, token in enumerate(tokens):
        logits = table.logits(row, (1, *tokens[:t]))
        total += float(logits[token] - np.log(np.exp(logits).sum()))
    return total / ((5 + len(tokens)) / 6) ** alpha


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(alpha: float) -> None:
    """Vocabulary 4, at most 4 tokens: with 27 beams nothing is pruned, and brute force sees all."""
    rows, vocab, longest, beams = 6, 4, 4, 27
    table = Tables(rows * beams, vocab, np.repeat(np.arange(rows), beams))
    found = decode(table, rows, longest, 1, 2, beams=beams, length_penalty=alpha)
    others = [0, 1, 3]
    every = [(*p, 2) for n in range(longest) for p in itertools.product(others, repeat=n)]
    every += list(itertools.product(others, repeat=longest))
    lengths = set()
    for n in range(rows):
        scores = {tokens: score_of(table, n, tokens, alpha) for tokens in every}
        best = max(scores, key=lambda tokens: scores[tokens])
        assert tuple(found.ids[n, : found.lengths[n]].tolist()) == best
        assert (found.ids[n, found.lengths[n] :] == 2).all()
        assert found.scores[n] == pytest.approx(scores[best], rel=1e-12)
        lengths.add(len(best))
    assert len(lengths) > 1 or alpha == 3.0


def test_a_narrow_beam_keeps_the_best_prefixes() -> None:
    """Two beams against a plain search that keeps the two best prefixes of every length."""
    table = Tables(2, 5, np.zeros(2, int))
    found = decode(table, 1, 5, 1, 2, beams=2)
    live, ended = [((), 0.0)], []
    for t in range(5):
        grown = []
        for prefix, _ in live:
            for token in range(5):
                tokens = (*prefix, token)
                value = score_of(table, 0, tokens, 0.0)
                (ended if token == 2 else grown).append((tokens, value))
        live = sorted(grown, key=lambda pair: -pair[1])[:2]
        if t == 4:
            ended += live
    tokens, value = max(ended, key=lambda pair: pair[1])
    assert tuple(found.ids[0, : found.lengths[0]].tolist()) == tokens
    assert found.scores[0] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_beams_follow_their_states(form: dict[str, Any], rng: Any) -> None:
    """The score a beam search reports is that of its sequence, read from the beginning."""
    rows, model = 20, make(rng, **form)
    src, lengths = rng.integers(0, V, (rows, S)), rng.integers(1, S + 1, rows)
    for p in model.parameters():
        p.data *= 3.0
    model.decoder.head.bias.data[2] -= 3.0  # long rows, so that beams overtake one another
    model.eval()
    found = model.generate(src, 9, src_lengths=lengths, beams=4, length_penalty=0.6)
    tgt = np.concatenate([np.full((rows, 1), 1), found.ids[:, :-1]], axis=1)
    logits = model(src, tgt, src_lengths=lengths).logits
    log_p = np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), found.ids[..., None], 2)[..., 0]
    counted = np.where(np.arange(tgt.shape[1]) < found.lengths[:, None], log_p, 0).sum(1)
    np.testing.assert_allclose(found.scores, counted / ((5 + found.lengths) / 6) ** 0.6, rtol=1e-9)


@pytest.mark.parametrize("attention", ["none", "bahdanau", "luong"])
def test_it_learns_to_reverse(attention: str, rng: Any) -> None:
    """End to end in float32: after 150 steps sequences come out backwards, attention on the diagonal."""
    config = Seq2SeqConfig(12, 12, 16, 48, attention=attention, bidirectional=True, cell="gru")
    model = Seq2Seq(config, rng=rng)
    optimizer = optim.AdamW(model.named_parameters(), lr=0.02, weight_decay=0.0)

    def draw(count: int) -> Any:
        src = rng.integers(3, 12, (count, 3))
        return src, np.concatenate([src[:, ::-1], np.full((count, 1), 2)], axis=1)

    for _ in range(150):
        model.zero_grad()
        model.loss_and_grads(*draw(64))
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    src, targets = draw(100)
    found = model.eval().generate(src, 4, beams=2)
    right = (found.ids == targets).all(1).mean() if found.ids.shape == targets.shape else 0.0
    assert right > 0.9


# --- files and errors -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bfloat16])
def test_save_and_load(dtype: Any, tmp_path: Path, rng: Any) -> None:
    model, (src, _) = make(rng, dtype, attention="bahdanau", bidirectional=True), batch(rng)
    model.eval().save_pretrained(tmp_path)
    loaded = Seq2Seq.from_pretrained(tmp_path)
    assert not loaded.training and loaded.config == model.config
    np.testing.assert_array_equal(loaded.generate(src, 5).ids, model.generate(src, 5).ids)
    for name, value in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype
        np.testing.assert_array_equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_parameter_counts(form: dict[str, Any], cell: str, rng: Any) -> None:
    model = make(rng, cell=cell, **form)
    assert models.count_parameters(model.config) == sum(p.data.size for p in model.parameters())


def test_errors_name_what_is_wrong(rng: Any) -> None:
    model, (src, tgt) = make(rng), batch(rng)
    calls: list[tuple[Any, str]] = [
        (lambda: model(src[0], tgt), r"src must be \[N, length\]"),
        (lambda: model(src, tgt[:, :0]), r"tgt must be \[N, length\] with length >= 1"),
        (lambda: model(src + V, tgt), r"src must lie in \[0, 9\)"),
        (lambda: model(src, tgt[:2]), "tgt must have src's 3 rows, got 2"),
        (lambda: model(src, tgt, src_lengths=np.array([6, 1, 1])), r"src_lengths must lie in \[0, 5\]"),
        (lambda: model(src, tgt, src_lengths=LENGTHS[:2]), r"src_lengths must be \[N\] = \[3\]"),
        (lambda: model(src, tgt, np.ones((N, S)), src_lengths=LENGTHS), "not both"),
        (lambda: model(src, tgt, 1 - np.eye(3, 5)), "must pad on the right"),
        (lambda: model.generate(src, 0), "max_new_tokens must be at least 1"),
        (lambda: model.generate(src, 3, beams=2, temperature=1.0), "beams > 1 searches"),
        (lambda: model.generate(src, 3, length_penalty=-1), "length_penalty must be >= 0"),
        (lambda: make(rng, attention="both"), "attention must be one of"),
        (lambda: make(rng, cell="rnn"), "cell must be one of"),
        (lambda: make(rng, hidden_size=5, bidirectional=True), "hidden_size must be even"),
        (lambda: model.loss_and_grads(src, tgt[:, :0]), r"targets must be \[N, T\] with T >= 1"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="src must be integers"):
        model(src * 1.0, tgt)
    with pytest.raises(TypeError, match="tgt must be an array"):
        model(src, tgt.tolist())
