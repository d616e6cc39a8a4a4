"""The GPU kernels beside torch's, each of its back-ends named and forced: `python bench/gpu.py OUT_DIR`.

Writes OUT_DIR/gpu.json and gpu.md. Times are medians by CUDA events, the L2 cache flushed before each call. A call
goes through the functional API, so that the cost of Python shows where it shows. The product x W is inside the time
of a recurrent layer, ours and torch's alike. Needs a GPU, CuPy and torch; bench/gpu.sh builds and calls it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
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
    flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
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


def recurrent() -> Iterator[Row]:
    for kind, dtype, hidden, batch in (("LSTM", torch.float16, 512, 16), ("GRU", torch.bfloat16, 512, 32)):
        length = 256
        layer = getattr(torch.nn, kind)(hidden, hidden).to("cuda", dtype)
        x = torch.randn(length, batch, hidden, device="cuda", dtype=dtype)
        weights = [cupy.from_dlpack(p.detach()) for p in layer.parameters()]
        weights[2:] = [b.astype("float32") for b in weights[2:]]
        given, ours = cupy.from_dlpack(x), getattr(seqkern, kind.lower())
        with torch.no_grad():
            theirs = timed(lambda: layer(x))  # noqa: B023
        mine = timed(lambda: ours(given, *weights))  # noqa: B023
        name = f"{kind} {str(dtype)[6:]} H={hidden} B={batch} T={length} forward, x W inside"
        yield Row(name, mine, f"{1e3 * mine / length:.2f} us a step", {"cudnn": theirs})


def passes() -> Iterator[Row]:
    x = torch.randn(8192, 4096, device="cuda", dtype=torch.bfloat16)
    given, f = cupy.from_dlpack(x), torch.nn.functional
    calls = {
        "layer_norm": (lambda: seqkern.layer_norm(given, 4096), lambda: f.layer_norm(x, (4096,))),
        "softmax": (lambda: seqkern.softmax(given), lambda: f.softmax(x, -1)),
        "gelu": (lambda: seqkern.gelu(given), lambda: f.gelu(x)),
    }
    for name, (mine, theirs) in calls.items():
        time = timed(mine)
        yield Row(f"{name} bf16 [8192, 4096]", time, f"{4 * x.numel() / time / 1e9:.2f} TB/s", {"torch": timed(theirs)})


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
        for family in (passes, attention, decoding, recurrent):
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
