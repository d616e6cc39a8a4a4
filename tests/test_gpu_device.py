"""What only a device, its driver or their absence shows: large layers, captured graphs, memory, clear errors."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqkern
from hostcuda.build import stand_below_ops
from support.cases import BFLOAT16, Recurrent
from support.on_gpu import Kernels
from support.recurrent_suite import check_backward, check_forward
from test_gpu_arrays import close, on_device


@pytest.mark.gpu
@pytest.mark.parametrize("op, N, H", [("lstm", 9, 512), ("gru", 70, 512), ("rnn", 8, 1024), ("lstm", 33, 1024)])
def test_large_layers(op: str, N: int, H: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters of 16, more of them than run at once, and teams of blocks, on tensor cores."""
    stand_below_ops(Kernels(), monkeypatch.setattr)
    case = Recurrent(op, T=3, N=N, I=64, H=H, lengths="ragged")
    check_forward(seqkern, case, BFLOAT16)
    check_backward(seqkern, case, BFLOAT16)


def lstm_and_attention(x: Any, weights: list[Any]) -> Any:
    y, _, saved = seqkern.lstm_forward(x, *weights)
    q = y.reshape(1, 2, -1, 16)
    out, kept = seqkern.scaled_dot_product_attention_forward(q, q, q, is_causal=True)
    dq = seqkern.scaled_dot_product_attention_backward(out, kept).dquery
    return seqkern.lstm_backward(dq.reshape(y.shape), None, saved).dx


def lstm_inputs() -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [rng.standard_normal(s).astype(np.float32) for s in ((10, 4, 16), (64, 16), (64, 16))]


@pytest.mark.gpu
def test_a_graph_replays_what_was_captured() -> None:
    """Nothing waits for the device or leaves the current stream."""
    cupy = pytest.importorskip("cupy")
    x, *weights = lstm_inputs()
    given, *on = on_device(cupy, x, *weights)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        lstm_and_attention(given, on)  # its memory is in the pool now
        stream.begin_capture()
        dx = lstm_and_attention(given, on)
        graph = stream.end_capture()
        given *= 0.5
        graph.launch(stream)
        stream.synchronize()
    close(dx, lstm_and_attention(x * np.float32(0.5), weights), 4.0)


@pytest.mark.gpu
def test_out_of_memory_is_an_exception_and_no_more() -> None:
    cupy = pytest.importorskip("cupy")
    x, *weights = lstm_inputs()
    given, *on = on_device(cupy, x, *weights)
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        long = cupy.zeros((10_000, 4, 16), np.float32)
        pool.set_limit(size=pool.total_bytes() + 4096)
        with pytest.raises(MemoryError):
            seqkern.lstm_forward(long, *on)
    close(lstm_and_attention(given, on), lstm_and_attention(x, weights), 4.0)


needs_extension = pytest.mark.skipif(
    importlib.util.find_spec("seqkern._cuda") is None, reason="_cuda is not built"
)


@needs_extension
def test_without_a_device_one_clear_error() -> None:
    """`_cuda` imports where there is no GPU, and says so when it is asked to do something."""
    from seqkern import _cuda, _gpu

    try:
        _cuda.information()
    except RuntimeError as error:
        assert "CUDA: " in str(error) and ("no CUDA device" in str(error) or "too old" in str(error))
        assert "built for sm_" in _gpu.describe() and str(error) in _gpu.describe()
    with pytest.raises(TypeError, match="must be a CUDA array"):
        _cuda.softmax_forward(np.ones(3, np.float32), False, None)


DRIVER = """
#define _GNU_SOURCE
#include <dlfcn.h>
static int no_device(void) { return 100; }
int cuInit(unsigned flags) { return no_device(); }
int cuDriverGetVersion(int* version) { *version = VERSION; return 0; }
int cuGetProcAddress_v2(const char* name, void** function, int version, unsigned long flags, int* status) {
  *function = dlsym(dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD), name);
  if (!*function) *function = (void*)no_device;
  if (status) *status = 0;
  return 0;
}
"""


@needs_extension
@pytest.mark.parametrize(
    "version, message",
    [(9000, "driver is too old: it knows CUDA 9.0, this build needs"), (99000, "no CUDA device: nvidia-smi must")],
)
def test_what_the_driver_says(tmp_path: Path, version: int, message: str) -> None:
    """A libcuda that knows its version and has no device."""
    (tmp_path / "driver.c").write_text(DRIVER)
    command = ["cc", "-shared", "-fPIC", f"-DVERSION={version}", "driver.c", "-o", "libcuda.so.1", "-ldl"]
    subprocess.run(command, cwd=tmp_path, check=True)
    script = "from seqkern import _gpu; print(_gpu.missing())"
    there = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=there)
    assert message in done.stdout, done.stdout + done.stderr


def test_a_name_the_module_lacks_is_only_missing() -> None:
    """Tools look for names in every loaded module, torch.compile among them."""
    from seqkern import _gpu

    assert not hasattr(_gpu, "no_such_name")
