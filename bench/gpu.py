"""The GPU kernels beside torch's, each of its back-ends named and forced: `python bench/gpu.py OUT_DIR`.

Writes OUT_DIR/gpu.json and gpu.md. Times are medians by CUDA events, the L2 cache flushed before each call. A call
goes through the functional API; while the GPU flushes its cache Python gets ahead, so that the times are the GPU's.
The product x W is inside the time of a recurrent layer, ours and torch's alike. Needs a GPU, CuPy and torch;
bench/gpu.sh builds and calls it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import cupy
import seqkern
import torch.cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

ROUNDS = 15
Event: Any = torch.cuda.Event
Stream: Any = torch.cuda.Stream
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}  # fmt: skip


class Row(NamedTuple):
    name: str
    milliseconds: float
    figure: str  # TFLOP/s or TB/s
    peers: dict[str, float | None]  # milliseconds; None where the back-end refuses


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds of a call, the median, on torch's stream, which CuPy is made to use too."""
    flush = torch.empty(1 << 30, dtype=torch.int8, device="cuda")  # long enough to hide what Python takes
    start, end = (Event(enable_timing=True) for _ in range(2))
    times = []
    for turn in range(ROUNDS + 3):
        flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        if turn >= 3:
            times.append(start.elapsed_time(end))
    return float(median(times))


def peer(call: Callable[[], Any]) -> float | None:
    try:
        return timed(call)
    except RuntimeError:
        return None


def forced(backend: SDPBackend, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with sdpa_kernel(backend):
            return call()

    return run


def attention() -> Iterator[Row]:
    for width, length, causal in ((128, 4096, False), (128, 4096, True), (64, 4096, False)):
        batch, heads = 2, 16
        q, k, v = (
            torch.randn(batch, heads, length, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        )
        mine = [cupy.from_dlpack(x.detach()) for x in (q, k, v)]
        out, saved = seqkern.scaled_dot_product_attention_forward(*mine, is_causal=causal)
        dout = torch.randn_like(q)
        given = cupy.from_dlpack(dout)

        def theirs() -> Any:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)  # noqa: B023

        def both() -> Any:
            return torch.autograd.grad(theirs(), (q, k, v), dout)  # noqa: B023

        flops = 4 * batch * heads * length * length * width / (2 if causal else 1)
        forward = timed(lambda: seqkern.scaled_dot_product_attention(*mine, is_causal=causal))  # noqa: B023
        backward = timed(lambda: seqkern.scaled_dot_product_attention_backward(given, saved))  # noqa: B023
        title = f"SDPA bf16 D={width} S={length}{' causal' if causal else ''}"
        peers = {name: peer(forced(which, theirs)) for name, which in BACKENDS.items()}
        yield Row(f"{title} forward", forward, f"{flops / forward / 1e9:.0f} TFLOP/s", peers)
        peers = {name: peer(forced(which, both)) for name, which in BACKENDS.items()}
        total = forward + backward
        yield Row(f"{title} forward + backward", total, f"{3.5 * flops / total / 1e9:.0f} TFLOP/s", peers)
        del out


def decoding() -> Iterator[Row]:
    for batch, kv_heads, length in ((1, 8, 8192), (1, 8, 32768), (32, 8, 8192), (1, 32, 8192), (32, 32, 8192)):
        sizes = ((32, 1), (kv_heads, length), (kv_heads, length))
        q, k, v = (torch.randn(batch, h, n, 128, device="cuda", dtype=torch.bfloat16) for h, n in sizes)
        mine = [cupy.from_dlpack(x) for x in (q, k, v)]
        gqa = kv_heads < 32

        def theirs() -> Any:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=gqa)  # noqa: B023

        time = timed(lambda: seqkern.scaled_dot_product_attention(*mine, enable_gqa=gqa))  # noqa: B023
        name = f"decoding bf16 D=128 B={batch} 32 heads over {kv_heads} S={length}"
        peers = {which: peer(forced(backend, theirs)) for which, backend in BACKENDS.items()}
        yield Row(name, time, f"{4 * k.numel() / time / 1e9:.2f} TB/s", peers)


def biased() -> Iterator[Row]:
    """Attention with an additive bias of every head, shared by the batch, whose gradient is wanted."""
    batch, heads, length, width = 2, 16, 2048, 64
    q, k, v, dout = (torch.randn(batch, heads, length, width, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    bias = torch.randn(1, heads, length, length, device="cuda", dtype=torch.bfloat16)
    mine = [cupy.from_dlpack(x) for x in (q, k, v, bias, dout)]
    leaves = [x.requires_grad_() for x in (q, k, v, bias)]

    def ours() -> Any:
        _, saved = seqkern.scaled_dot_product_attention_forward(*mine[:4])
        return seqkern.scaled_dot_product_attention_backward(mine[4], saved)

    def theirs() -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return torch.autograd.grad(out, leaves, dout)

    flops = 14 * batch * heads * length * length * width
    time, other = timed(ours), peer(forced(BACKENDS["efficient"], theirs))
    name = f"SDPA bf16 D={width} S={length} bias [1, H, S, S] and its gradient, forward + backward"
    yield Row(name, time, f"{flops / time / 1e9:.0f} TFLOP/s", {"efficient": other})


LAYERS = (  # kind, dtype, hidden, batch, directions, lengths
    *(("LSTM", torch.float16, hidden, batch, 1, False) for hidden in (512, 1024) for batch in (8, 32)),
    ("LSTM", torch.bfloat16, 512, 32, 1, False),
    ("GRU", torch.bfloat16, 512, 32, 1, False),
    ("LSTM", torch.bfloat16, 512, 32, 2, False),
    ("LSTM", torch.bfloat16, 512, 32, 1, True),
)


def recurrent() -> Iterator[Row]:
    """Layers of one or two directions, 256 steps, x W inside; ragged rows against a PackedSequence."""
    steps = 256
    for kind, dtype, hidden, batch, directions, ragged in LAYERS:
        layer = getattr(torch.nn, kind)(hidden, hidden, bidirectional=directions == 2).to("cuda", dtype)
        x = torch.randn(steps, batch, hidden, device="cuda", dtype=dtype, requires_grad=True)
        dy = torch.randn(steps, batch, directions * hidden, device="cuda", dtype=dtype)
        lengths = torch.linspace(steps / 8, steps, batch).long() if ragged else None
        parameters = list(layer.parameters())
        given, dout = cupy.from_dlpack(x.detach()), cupy.from_dlpack(dy[..., :hidden].contiguous())
        rows = [[cupy.from_dlpack(p.detach()) for p in parameters[4 * d : 4 * d + 4]] for d in range(directions)]
        weights = [[*row[:2], *(b.astype("float32") for b in row[2:])] for row in rows]
        options = {"lengths": cupy.asarray(lengths.numpy())} if lengths is not None else {}
        forward, backward = (getattr(seqkern, f"{kind.lower()}_{pass_}") for pass_ in ("forward", "backward"))

        def theirs() -> Any:
            if lengths is None:  # noqa: B023
                return layer(x)[0]  # noqa: B023
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)  # noqa: B023
            return torch.nn.utils.rnn.pad_packed_sequence(layer(packed)[0], total_length=steps)[0]  # noqa: B023

        def infer() -> Any:
            with torch.no_grad():
                return theirs()

        def train() -> Any:
            return torch.autograd.grad(theirs(), (x, *parameters), dy)  # noqa: B023

        def mine(call: Callable[..., Any]) -> list[Any]:
            return [call(given, *row, reverse=d == 1, **options) for d, row in enumerate(weights)]  # noqa: B023

        def both() -> None:
            for *_, saved in mine(forward):  # noqa: B023
                backward(dout, None, saved)  # noqa: B023

        name = f"{kind} {str(dtype)[6:]} H={hidden} B={batch}{' bidirectional' * (directions - 1)}{' ragged' * ragged}"
        for what, ours, peers in (
            ("forward", lambda: mine(getattr(seqkern, kind.lower())), infer),  # noqa: B023
            ("forward + backward", both, train),
        ):
            time = timed(ours)
            yield Row(f"{name} {what}", time, f"{1e3 * time / steps:.2f} us a step", {"torch": peer(peers)})


def passes() -> Iterator[Row]:
    x, residual, dy = (torch.randn(8192, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    weight = torch.ones(4096, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    given, added, dout = (cupy.from_dlpack(t) for t in (x, residual, dy))
    own_weight, f = cupy.from_dlpack(weight.detach()), torch.nn.functional
    _, saved = seqkern.layer_norm_forward(given, 4096, own_weight, own_weight)
    leaf = x.detach().requires_grad_()
    normed = f.layer_norm(leaf, (4096,), weight, weight)

    def add_norm() -> Any:
        summed = x + residual
        return summed, f.layer_norm(summed, (4096,))

    calls = {  # arrays read and written, ours, torch's
        "layer_norm": (2, lambda: seqkern.layer_norm(given, 4096), lambda: f.layer_norm(x, (4096,))),
        "add_layer_norm": (4, lambda: seqkern.add_layer_norm(given, added, 4096), add_norm),
        "layer_norm backward": (
            3,
            lambda: seqkern.layer_norm_backward(dout, saved),
            lambda: torch.autograd.grad(normed, (leaf, weight), dy, retain_graph=True),
        ),
        "softmax": (2, lambda: seqkern.softmax(given), lambda: f.softmax(x, -1)),
        "gelu": (2, lambda: seqkern.gelu(given), lambda: f.gelu(x)),
    }
    for name, (arrays, mine, theirs) in calls.items():
        time = timed(mine)
        figure = f"{2 * arrays * x.numel() / time / 1e9:.2f} TB/s"
        yield Row(f"{name} bf16 [8192, 4096]", time, figure, {"torch": timed(theirs)})


def overhead() -> Iterator[Row]:
    """What a call costs before the GPU has anything to do."""
    x = torch.randn(1, 1, 16, 64, device="cuda", dtype=torch.bfloat16)
    given, f = cupy.from_dlpack(x), torch.nn.functional
    calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "softmax": (lambda: seqkern.softmax(given), lambda: f.softmax(x, -1)),
        "scaled_dot_product_attention": (
            lambda: seqkern.scaled_dot_product_attention(given, given, given),
            lambda: f.scaled_dot_product_attention(x, x, x),
        ),
    }
    for name, pair in calls.items():
        times = []
        for call in pair:
            call()
            torch.cuda.synchronize()
            began = perf_counter()
            for _ in range(300):
                call()
            times.append((perf_counter() - began) / 0.3)
            torch.cuda.synchronize()
        yield Row(f"{name} of 16 rows, the host's time", times[0], f"{1e3 * times[0]:.0f} us", {"torch": times[1]})


def table(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.peers))
    lines = [f"| call | ms | | {' | '.join(f'{name} / ours' for name in names)} |", "|---" * (3 + len(names)) + "|"]
    for row in rows:
        ratios = [f"{t / row.milliseconds:.2f}" if (t := row.peers.get(name)) else "" for name in names]
        lines.append(f"| {row.name} | {row.milliseconds:.3f} | {row.figure} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def main(folder: Path) -> None:
    stream = Stream()
    rows: list[Row] = []
    with torch.cuda.stream(stream), cupy.cuda.ExternalStream(stream.cuda_stream):
        for family in (overhead, passes, attention, biased, decoding, recurrent):
            for row in family():
                rows.append(row)
                print(row, flush=True)
    device = torch.cuda.get_device_name()
    (folder / "gpu.json").write_text(
        json.dumps({"device": device, "torch": torch.__version__, "rows": [row._asdict() for row in rows]}, indent=1)
    )
    (folder / "gpu.md").write_text(f"{device}, torch {torch.__version__}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
