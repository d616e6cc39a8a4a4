"""Arrays of a device: dispatch by their type, nn modules, models and optimisers after `.to("cuda")`.

Here the device is the host: CuPy is tests/support/fake_cupy.py, and the kernels are the CUDA kernels' own text, run
by tests/hostcuda. With a GPU the same bodies run on CuPy and `_cuda`, marked `gpu`.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import seqkern
from seqkern import models, nn, optim
from support import fake_cupy


@pytest.fixture(params=["hostcuda", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The array library of the device."""
    if request.param == "gpu":
        yield pytest.importorskip("cupy")
        return
    kernels: ModuleType = request.getfixturevalue("hostcuda")
    kernels.configure()
    yield fake_cupy.install(monkeypatch, kernels)
    kernels.use_arrays("numpy")


def on_device(cupy: Any, *arrays: np.ndarray) -> list[Any]:
    return [cupy.asarray(a) for a in arrays]


def close(got: Any, want: np.ndarray, factor: float = 1.0) -> None:
    """Within what float32 sums of these lengths may differ by, on two devices."""
    got = got.get()
    assert got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=factor * 2e-5 * max(1.0, float(np.abs(want).max(initial=0))))


def test_the_same_type_comes_back(cupy: Any) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    y = seqkern.softmax(cupy.asarray(x))
    assert isinstance(y, cupy.ndarray)
    close(y, seqkern.softmax(x))


def test_strides_and_a_scalar_loss(cupy: Any) -> None:
    rng = np.random.default_rng(1)
    logits, target = rng.standard_normal((6, 4, 9)).astype(np.float32), rng.integers(0, 6, (4, 9)).astype(np.int32)
    logits, (x, t) = np.moveaxis(logits, 0, -1), on_device(cupy, logits, target)
    loss, saved = seqkern.cross_entropy_forward(cupy.moveaxis(x, 0, -1), t)
    want, wanted = seqkern.cross_entropy_forward(logits, target)
    close(loss, want)
    close(seqkern.cross_entropy_backward(loss * 0 + 2, saved).dlogits,
          seqkern.cross_entropy_backward(2.0, wanted).dlogits)  # fmt: skip


def test_an_index_out_of_range_is_moved_into_it(cupy: Any) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    for dtype in (np.int8, np.uint16, np.int32, np.int64):
        ids = np.array([3, 0, 100, -7 if np.issubdtype(dtype, np.signedinteger) else 0]).astype(dtype)
        close(seqkern.embedding(*on_device(cupy, ids, weight)), weight[[3, 0, 3, 0]])


@pytest.mark.parametrize("rows", [1, 20])
def test_pages_and_lengths_out_of_range_are_moved_into_it(cupy: Any, rows: int) -> None:
    rng = np.random.default_rng(11)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in ((2, 4, rows, 8), (3, 4, 2, 8), (3, 4, 2, 8))]
    table, lengths = np.array([[1, 0, 2], [2, 0, 1]]), np.array([12, 0])
    want = seqkern.attention_paged(*arrays, table, lengths)
    table[0, 2], table[0, 1], table[1], lengths[:] = 2**31, -9, 2**40, (99, -1)
    close(seqkern.attention_paged(*on_device(cupy, *arrays, table, lengths)), want)


def test_host_and_device_do_not_mix(cupy: Any) -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match="layer_norm: got a NumPy array while other arguments are CuPy arrays"):
        seqkern.layer_norm(cupy.asarray(x), 3, x[0])
    with pytest.raises(TypeError, match="rms_norm: weight must be a NumPy array"):
        seqkern.rms_norm(x, 3, cupy.asarray(x[0]))
    with pytest.raises(TypeError, match="linear: got a NumPy array"):
        seqkern.linear(cupy.asarray(x), x)


def test_another_device_is_refused(hostcuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is plain CuPy, in the words of the kernels' bindings."""
    fake = fake_cupy.install(monkeypatch, hostcuda)
    x, weight = on_device(fake, np.ones((2, 3), np.float32), np.ones((4, 3), np.float32))
    weight.device = SimpleNamespace(id=1)
    with pytest.raises(ValueError, match="linear: weight must be on the current device, 0, got an array on device 1"):
        seqkern.linear(x, weight)
    hostcuda.use_arrays("numpy")


@pytest.mark.parametrize(
    "broken, message",
    [
        ({"typestr": ">f4"}, "native byte order"),
        ({"typestr": "<c8"}, "must be float32, float64, bfloat16 or float16"),
        ({"shape": (4, 3)}, "dy must be"),
        ({"data": None}, "object"),
    ],
)
def test_interfaces_that_are_refused(hostcuda: ModuleType, broken: dict[str, Any], message: str) -> None:
    """Of any object that offers one, whatever its library."""

    class Offered:
        def __init__(self, array: np.ndarray, changed: dict[str, Any]) -> None:
            self.__cuda_array_interface__ = {**array.__array_interface__, **changed}

    y = np.ones((3, 4), np.float32)
    taken = hostcuda.softmax_backward(Offered(y, {}), Offered(y, {"strides": (16, 4)}), False)
    np.testing.assert_array_equal(taken, -3 * y)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        hostcuda.softmax_backward(Offered(y, broken), Offered(y, {}), False)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(cupy: Any, dtype: str) -> None:
    """float16, which the CPU has not, and bfloat16, against float64 on the rounded inputs."""
    rng, unit = np.random.default_rng(2), 2.0**-11 if dtype == "float16" else 2.0**-8
    kind = np.dtype(dtype if dtype == "float16" else ml_dtypes.bfloat16)
    T, N, H = 5, 3, 16
    arrays = [rng.standard_normal(s).astype(kind) for s in ((T, N, H), (4 * H, H), (4 * H, H))]
    arrays[1:] = [(a.astype(np.float32) / 4).astype(kind) for a in arrays[1:]]
    wide = [a.astype(np.float64) for a in arrays]
    y, _, saved = seqkern.lstm_forward(*on_device(cupy, *arrays))
    want, _, wanted = seqkern.lstm_forward(*wide)
    assert y.dtype == kind
    assert np.abs(y.get().astype(np.float64) - want).max() <= 4 * T * unit
    got, expected = seqkern.lstm_backward(y, None, saved), seqkern.lstm_backward(want, None, wanted)
    for name in ("dx", "dweight_ih", "dweight_hh"):
        mine, theirs = getattr(got, name).get().astype(np.float64), getattr(expected, name)
        assert np.abs(mine - theirs).max() <= 4 * T * N * unit * max(1.0, np.abs(theirs).max()), name
    q, k, v = (rng.standard_normal((1, 2, 70, 64)).astype(kind) for _ in range(3))
    out = seqkern.scaled_dot_product_attention(*on_device(cupy, q, k, v), is_causal=True)
    want = seqkern.scaled_dot_product_attention(*(a.astype(np.float64) for a in (q, k, v)), is_causal=True)
    assert np.abs(out.get().astype(np.float64) - want).max() <= 4 * unit * np.abs(v.astype(np.float64)).max()
    pages = [rng.standard_normal((3, 32, 2, 64)).astype(kind) for _ in range(2)]
    for rows in (1, 70):
        given, table = (q[:, :, :rows], *pages), (np.array([[2, 0, 1]]), np.array([90]))
        out = seqkern.attention_paged(*on_device(cupy, *given, *table))
        want = seqkern.attention_paged(*(a.astype(np.float64) for a in given), *table)
        most = np.abs(pages[1].astype(np.float64)).max()
        assert np.abs(out.get().astype(np.float64) - want).max() <= 4 * unit * most


def losses(make: Any, data: list[np.ndarray], device: str) -> tuple[list[float], Any]:
    """The logits' mean square, then losses of three steps of training on the last of the data."""
    seqkern.manual_seed(0)
    model = make().to(device)
    if device == "cuda":
        import cupy

        data = on_device(cupy, *data)
    *inputs, targets = data
    optimiser, criterion, history = optim.AdamW(model.parameters(), lr=1e-2), nn.CrossEntropyLoss(), []
    history.append(float((model.eval()(*inputs).logits ** 2).mean()))
    model.train()
    for _ in range(3):
        output, pull = model.vjp(*inputs)
        loss, pull_loss = criterion.vjp(output.logits, targets)
        model.zero_grad()
        pull(pull_loss()[0])
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        history.append(float(loss))
    return history, model


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((3, 4, 9), (6, 4, 3), {"padding": 1}),
    ((2, 6, 11), (9, 2, 4), {"groups": 3, "padding": "same"}),
    ((2, 5, 12), (5, 1, 3), {"groups": 5, "stride": 2, "dilation": 2}),
    ((2, 3, 8, 9), (4, 3, 3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 3)}),
    ((3, 3, 8, 12), (7, 3, 4, 4), {"stride": 4}),
    ((2, 4, 5, 5), (4, 2, 1, 1), {"groups": 2, "stride": 3}),
    ((0, 2, 5, 5), (4, 2, 3, 3), {"padding": "same"}),
    ((2, 0, 5), (4, 0, 3), {}),
    ((2, 3, 5), (0, 3, 3), {}),
]


def alike(got: Any, want: Any) -> None:
    """Results of one function on two devices: `close`, bfloat16 within what its rounding may differ by."""
    for ours, theirs in zip(got, want, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is None:
            continue
        if theirs.dtype.name == "bfloat16":
            assert ours.dtype == theirs.dtype
            ours, theirs = ours.astype(np.float32), theirs.astype(np.float32)
            close(ours, theirs, 1000.0)  # 2^-6 of the largest
        else:
            close(ours, theirs)


@pytest.fixture(params=["float32", "float64", "bfloat16"])
def kind(request: pytest.FixtureRequest) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if request.param == "bfloat16" else request.param)


@pytest.mark.parametrize("columns", [1 << 28, 1], ids=["at once", "one by one"])
@pytest.mark.parametrize("x, weight, options", CONVOLUTIONS, ids=str)
def test_convolution(
    cupy: Any, kind: np.dtype[Any], columns: int, x: Any, weight: Any, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqkern import _gpu_conv

    monkeypatch.setattr(_gpu_conv, "COLUMNS", columns)
    rng, op = np.random.default_rng(5), f"conv{len(x) - 2}d"
    forward, backward = getattr(seqkern, f"{op}_forward"), getattr(seqkern, f"{op}_backward")
    wide = np.float64 if kind == np.float64 else np.float32
    arrays = [rng.standard_normal(x).astype(kind).swapaxes(0, 1).copy().swapaxes(0, 1),
              rng.standard_normal(weight).astype(kind), rng.standard_normal(weight[0]).astype(wide)]  # fmt: skip
    for given in (arrays, arrays[:2]):
        want, wanted = forward(*given, **options)
        y, saved = forward(*on_device(cupy, *given), **options)
        alike([y], [want])
        dy = rng.standard_normal(want.shape).astype(kind)
        alike(backward(cupy.asarray(dy), saved), backward(dy, wanted))
        alike(backward(None, saved), backward(None, wanted))


@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": (3, 2), "stride": 1},
     {"kernel_size": 2, "stride": 3, "padding": 1, "dilation": 2, "ceil_mode": True},
     {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 2},
     {"kernel_size": (2, 3), "stride": 2, "ceil_mode": True}],
    ids=str,
)  # fmt: skip
def test_max_pooling(cupy: Any, kind: np.dtype[Any], options: dict[str, Any]) -> None:
    """Ties, NaN and whole regions of -inf; gradients whose sums are exact."""
    rng = np.random.default_rng(6)
    for shape in ((2, 3, 7, 9), (1, 2, 12, 17), (0, 2, 6, 6)):
        x = rng.integers(-3, 4, shape).astype(np.float64)
        x[rng.random(shape) < 0.05] = np.nan
        x[:, :1] = np.where(rng.random(x[:, :1].shape) < 0.8, -np.inf, x[:, :1])
        x = x.astype(kind)
        want, wanted = seqkern.max_pool2d_forward(x, **options)
        y, saved = seqkern.max_pool2d_forward(cupy.asarray(x), **options)
        dy = rng.integers(-8, 9, want.shape).astype(kind)
        dx = seqkern.max_pool2d_backward(cupy.asarray(dy), saved).dx
        for got, truth in ((y, want), (saved.indices, wanted.indices),
                           (dx, seqkern.max_pool2d_backward(dy, wanted).dx)):  # fmt: skip
            assert got.dtype == truth.dtype
            np.testing.assert_array_equal(got.get().astype(np.float64), truth.astype(np.float64))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 7), (3, 4, 5, 6)], ids=str)
def test_batch_norm(cupy: Any, kind: np.dtype[Any], shape: tuple[int, ...], training: bool) -> None:
    rng, wide = np.random.default_rng(7), np.float64 if kind == np.float64 else np.float32
    x, dy = (rng.standard_normal(shape).astype(kind) for _ in range(2))
    mean, weight, bias = (rng.standard_normal(shape[1]).astype(wide) for _ in range(3))
    var = rng.uniform(0.5, 2.0, shape[1]).astype(wide)
    for affine in ((weight, bias), (weight, None), (None, None)):
        host = (x, mean.copy(), var.copy(), *affine)
        device = [None if a is None else cupy.asarray(a) for a in host]
        want, wanted = seqkern.batch_norm_forward(*host, training, 0.3)
        out = cupy.empty(shape, kind)
        y, saved = seqkern.batch_norm_forward(*device, training, 0.3, out=out)
        assert y is out
        alike([y, saved.mean, saved.rstd, *device[1:3]], [want, wanted.mean, wanted.rstd, *host[1:3]])
        alike(seqkern.batch_norm_backward(cupy.asarray(dy), saved), seqkern.batch_norm_backward(dy, wanted))


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_int8_weights(cupy: Any, kind: np.dtype[Any], activation: str | None) -> None:
    rng = np.random.default_rng(8)
    weight = rng.standard_normal((5, 8)).astype(kind)
    weight[2] = 0
    want, got = seqkern.quantize_int8(weight), seqkern.quantize_int8(cupy.asarray(weight))
    np.testing.assert_array_equal(got[0].get(), want[0])
    close(got[1], want[1])
    if kind == np.float64:
        return
    x, residual = rng.standard_normal((2, 3, 8)).astype(kind), rng.standard_normal((2, 3, 5)).astype(kind)
    for bias in (None, rng.standard_normal(5).astype(np.float32)):
        y = seqkern.linear_int8(x, *want, bias, activation=activation, residual=residual)
        given = [None if a is None else cupy.asarray(a) for a in (x, *want, bias)]
        alike([seqkern.linear_int8(*given, activation=activation, residual=cupy.asarray(residual))], [y])


def test_errors_are_the_hosts(cupy: Any) -> None:
    def both(name: str, *args: Any, **options: Any) -> None:
        """The same kind of exception in the same words on the host and on the device."""
        with pytest.raises((TypeError, ValueError)) as host:
            getattr(seqkern, name)(*args, **options)
        there = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in args]
        with pytest.raises((TypeError, ValueError)) as device:
            getattr(seqkern, name)(*there, **options)
        assert (type(host.value), str(host.value)) == (type(device.value), str(device.value))

    def of(*shape: int, dtype: Any = np.float32) -> np.ndarray:
        return np.zeros(shape, dtype)

    both("conv2d", of(2, 3, 4), of(4, 3, 2, 2))
    both("conv1d", of(2, 3, 4), of(4, 3, 2, 2))
    both("conv1d", of(2, 3, 4), of(4, 2, 2))
    both("conv1d", of(2, 4, 4), of(3, 2, 2), groups=2)
    both("conv1d", of(2, 3, 4), of(4, 3, 3), dilation=2)
    both("conv1d", of(2, 3, 4), of(4, 3, 0))
    both("conv2d", of(2, 3, 4, 4), of(4, 3, 2, 2, dtype=np.float64))
    both("max_pool2d", of(2, 3, 4), 2)
    both("max_pool2d", of(2, 3, 4, 4), 5)
    both("batch_norm", of(3), None, None)
    both("batch_norm", of(2, 3), None, None)
    both("batch_norm", of(1, 3), None, None, training=True)
    both("batch_norm", of(2, 3), of(3), None)
    both("batch_norm", of(2, 3), of(3, dtype=np.float64), of(3))
    both("linear_int8", of(2, 3), of(4, 3), of(4))
    both("linear_int8", of(2, 3), of(4, 2, dtype=np.int8), of(4))
    both("linear_int8", of(2, 3), of(4, 3, dtype=np.int8), of(4), activation="tanh")


def tiny_gpt2() -> Any:
    none = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    sizes = {"vocab_size": 23, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return models.GPT2(models.GPT2.Config(**sizes, **none))


def tiny_rnn_lm() -> Any:
    return models.RNNLM(models.RNNLM.Config(vocab_size=23, embedding_size=8, hidden_size=16, num_layers=2))


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_rnn_lm])
def test_a_language_model_trains_after_to_cuda(cupy: Any, make: Any) -> None:
    ids = np.random.default_rng(3).integers(0, 23, (2, 9))
    trains(cupy, make, [ids[:, :-1], ids[:, 1:]])


def trains(cupy: Any, make: Any, data: list[np.ndarray]) -> None:
    want, _ = losses(make, data, "cpu")
    got, model = losses(make, data, "cuda")
    assert all(isinstance(p.data, cupy.ndarray) for p in model.parameters())
    np.testing.assert_allclose(got, want, rtol=2e-4)


def tiny_bert(**changes: Any) -> Any:
    sizes = {"vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 24, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0,
             "attention_probs_dropout_prob": 0.0}  # fmt: skip
    return models.BERT(models.BERT.Config(**{**sizes, **changes}))


def tiny_translator(**changes: Any) -> Any:
    sizes = {"d_model": 16, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 2, "dim_feedforward": 24}
    return models.TransformerMT(
        models.TransformerMT.Config(23, 19, **sizes, max_positions=12, dropout=0.0, **changes)
    )


def tiny_seq2seq(**changes: Any) -> Any:
    return models.Seq2Seq(models.Seq2Seq.Config(23, 19, embedding_size=6, hidden_size=8, **changes))


PAIRED = {
    "sinusoids": lambda: tiny_translator(),
    "learned positions": lambda: tiny_translator(positions="learned"),
    "no attention": lambda: tiny_seq2seq(bidirectional=True, reverse_source=True),
    "bahdanau": lambda: tiny_seq2seq(attention="bahdanau", cell="gru"),
    "luong": lambda: tiny_seq2seq(attention="luong", num_layers=2, reverse_source=True),
    "concat": lambda: tiny_seq2seq(attention="luong", score="concat"),
}


@pytest.mark.parametrize("name", PAIRED)
def test_a_translator_trains_after_to_cuda(cupy: Any, name: str) -> None:
    rng = np.random.default_rng(12)
    ids = rng.integers(3, 19, (3, 6))
    trains(cupy, PAIRED[name], [rng.integers(3, 23, (3, 7)), ids[:, :-1], ids[:, 1:]])


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("head", ["masked_lm", "token", "sequence"])
def test_an_encoder_trains_after_to_cuda(cupy: Any, kind: str, head: str) -> None:
    rng = np.random.default_rng(13)
    ids, mask = rng.integers(2, 23, (2, 7)), np.arange(7) < np.array([[7], [4]])
    targets = rng.integers(0, 2, (2,) if head == "sequence" else (2, 7))
    trains(cupy, lambda: tiny_bert(model_type=kind, head=head), [ids, mask, targets])


IDS = np.random.default_rng(14).integers(3, 19, (2, 5))
KEPT = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
IMAGES = np.random.default_rng(15).standard_normal((2, 2, 8, 8)).astype(np.float32)
WRITERS: dict[str, tuple[Any, Any]] = {
    "gpt2": (tiny_gpt2, lambda m, on: m.generate(on(IDS), 6, temperature=0, attention_mask=on(KEPT))),
    "gpt2 drawing": (tiny_gpt2, lambda m, on: m.generate(on(IDS), 6, top_p=0.9, repetition_penalty=1.3, seed=1)),
    "gpt2 in int8": (lambda: tiny_gpt2().quantize_int8(), lambda m, on: m.generate(on(IDS), 6, temperature=0)),
    "rnn_lm": (tiny_rnn_lm, lambda m, on: m.generate(on(IDS), 6, temperature=0)),
    "captioner": (lambda: tiny_captioner(), lambda m, on: m.generate(on(IMAGES), 4, beams=2, length_penalty=6.0).ids),
    **{
        f"{name}, {beams} beams": (make, lambda m, on, n=beams: m.generate(
            on(IDS), 6, attention_mask=on(KEPT[:, ::-1].copy()), beams=n, length_penalty=6.0).ids)
        for name, make in PAIRED.items() for beams in (1, 3)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_model_writes_the_same_there_and_back(cupy: Any, name: str) -> None:
    make, write = WRITERS[name]
    seqkern.manual_seed(3)
    model = make()
    want = write(model, lambda a: a)
    np.testing.assert_array_equal(write(model.to("cuda"), cupy.asarray), want)
    np.testing.assert_array_equal(write(model.to("cpu"), lambda a: a), want)


def test_sentences_are_embedded_after_to_cuda(cupy: Any) -> None:
    seqkern.manual_seed(0)
    model = tiny_bert().eval()
    for options in ({"normalise": True}, {"pooling": "cls"}, {"pooling": "pooler"}):
        want = model.to("cpu").embed(IDS, KEPT, **options)
        close(model.to("cuda").embed(*on_device(cupy, IDS, KEPT), **options), want)


@pytest.mark.parametrize("loss", ["negative", "softmax"])
def test_word_vectors_after_to_cuda(cupy: Any, loss: str) -> None:
    words = [str(n) for n in range(12)]
    model = models.Word2Vec(models.Word2VecConfig(words, list(range(12, 0, -1)), dim=6, loss=loss))
    ids = np.random.default_rng(16).integers(0, 12, (2, 9))
    noise = [np.arange(5)] if loss == "negative" else []
    want = [model.loss_and_grads(*ids, *noise), *(p.grad for p in model.parameters())]
    model.to("cuda").zero_grad()
    got = [model.loss_and_grads(*on_device(cupy, *ids, *noise)), *(p.grad for p in model.parameters())]
    assert abs(got[0] - want[0]) < 1e-5
    for ours, theirs in zip(got[1:], want[1:], strict=True):
        close(ours, theirs)


def test_int8_weights_move_and_are_saved() -> None:
    layer = nn.Int8Linear.from_linear(nn.Linear(5, 4)).to("bfloat16")
    kinds = {name: array.dtype.name for name, array in layer.state_dict().items()}
    assert kinds == {"q": "int8", "scale": "float32", "bias": "float32"} and not list(layer.parameters())


def test_an_optimiser_follows_its_parameters(cupy: Any) -> None:
    def trained(move: bool) -> Any:
        seqkern.manual_seed(0)
        layer = nn.Linear(3, 2)
        optimiser = optim.AdamW(layer.parameters(), lr=0.1)
        for step in range(2):
            x = np.full((4, 3), 1.0 + step, np.float32)
            if step and move:
                layer.to("cuda")
                x = cupy.asarray(x)
            y, pull = layer.vjp(x)
            layer.zero_grad()
            pull(y)
            optimiser.step()
        return layer.weight.data

    close(trained(True), trained(False))


def tiny_vit() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return models.ViT(models.ViTConfig(**sizes, image_size=(8, 12), patch_size=4, num_channels=2, num_labels=5))


def tiny_swin() -> Any:
    sizes = {"image_size": 12, "patch_size": 2, "num_channels": 2, "embed_dim": 8, "depths": (2, 2)}
    return models.Swin(
        models.SwinConfig(**sizes, num_heads=(2, 4), window_size=3, num_labels=5, drop_path_rate=0.0)
    )


def tiny_vgg() -> Any:
    sizes = {"channels": (4, 6), "convolutions": (1, 2), "num_channels": 2, "pooled_size": 2, "classifier_size": 8}
    return models.VGG(models.VGGConfig(**sizes, batch_norm=True, num_labels=5, dropout=0.0))


def tiny_wav2vec2() -> Any:
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
             "conv_dim": (6, 8), "conv_kernel": (7, 3), "conv_stride": (4, 2), "num_conv_pos_embeddings": 6,
             "num_conv_pos_embedding_groups": 3, "classifier_proj_size": 5}  # fmt: skip
    return models.Wav2Vec2(models.Wav2Vec2Config(**sizes, head="classification", num_labels=5))


def tiny_sequence_model() -> Any:
    front = nn.Sequential(nn.Conv1d(2, 8, 3, padding=1), nn.ReLU())
    return models.SequenceModel(models.SequenceModelConfig(input_size=80, hidden_size=8, output_size=5), front)


def tiny_captioner() -> Any:
    return models.Captioner(
        models.CaptionerConfig(7, embedding_size=4, hidden_size=6, channels=(3, 4), in_channels=2)
    )


@pytest.mark.parametrize(
    "make, shape",
    [(tiny_vit, (2, 2, 8, 12)), (tiny_vit, (2, 2, 12, 4)), (tiny_swin, (2, 2, 12, 12)), (tiny_swin, (1, 2, 10, 14)),
     (tiny_vgg, (4, 2, 12, 12)), (tiny_wav2vec2, (2, 90)), (tiny_sequence_model, (2, 4, 2, 10)),
     (tiny_captioner, (2, 2, 8, 8))],
)  # fmt: skip
def test_models_with_convolutions_train_after_to_cuda(cupy: Any, make: Any, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(9)
    data = [rng.standard_normal(shape).astype(np.float32), rng.integers(0, 5, shape[0])]
    if make is tiny_captioner:
        ids = rng.integers(0, 7, (2, 4))
        data[1:] = [ids[:, :-1], ids[:, 1:]]
    trains(cupy, make, data)


@pytest.mark.parametrize(
    "make, shape", [(tiny_vit, (2, 2, 8, 12)), (tiny_swin, (2, 2, 12, 12)), (tiny_vgg, (4, 2, 12, 12))]
)
def test_bfloat16_models(cupy: Any, make: Any, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(10).standard_normal(shape).astype(np.float32)
    seqkern.manual_seed(0)
    model = make().eval().to("bfloat16")
    want = model(images).logits.astype(np.float32)
    output, pull = model.to("cuda").vjp(cupy.asarray(images))
    np.testing.assert_allclose(output.logits.get().astype(np.float32), want, rtol=0, atol=0.05 * np.abs(want).max())
    (dimages,) = pull(output.logits)
    assert dimages.dtype == np.float32 and all(p.grad.shape == p.shape for p in model.parameters())
