"""Checkpoints are mapped, not copied; they are replaced atomically; malformed ones give one clear error."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqkern
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file
from seqkern import optim
from seqkern.models import BERT, GPT2, RNNLM, BERTConfig, GPT2Config, RNNLMConfig
from seqkern.models._mapped import forget, map_file

LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
CONFIG = RNNLMConfig(7, embedding_size=5, hidden_size=6)


def saved(folder: Path, seed: int = 0) -> RNNLM:
    model = RNNLM(CONFIG, rng=np.random.default_rng(seed)).eval()
    model.save_pretrained(folder)
    return model


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[Any], *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


# --- what is read ---------------------------------------------------------------------------------


def test_reads_what_the_safetensors_package_writes(rng: Any, tmp_path: Path) -> None:
    kinds = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", bfloat16)
    shapes: Any = ((3, 5), (), (0, 2), 7)
    arrays = {f"{np.dtype(k).name}-{s}": np.asarray(9 * rng.random(s)).astype(k) for k in kinds for s in shapes}
    save_file(arrays, tmp_path / "all", metadata={"format": "np"})
    found = map_file(tmp_path / "all")
    assert set(found) == set(arrays)
    for name, value in load_file(tmp_path / "all").items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_an_array_at_an_odd_address_is_copied(tmp_path: Path) -> None:
    """The format aligns nothing; the kernels want whole floats."""
    model = saved(tmp_path)
    arrays = {n: np.ascontiguousarray(a) for n, a in model.state_dict().items()}
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    at, data = 0, b""
    for name, a in arrays.items():
        header[name] = entry("F32", list(a.shape), at, at + a.nbytes)
        at, data = at + a.nbytes, data + a.tobytes()
    text = json.dumps(header)
    write(tmp_path / "model.safetensors", (text + " " * (1 - len(text) % 4 + 4)).encode(), data)
    loaded = RNNLM.from_pretrained(tmp_path)
    ids = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(loaded(ids).logits, model(ids).logits)
    assert all(p.data.flags.aligned for p in loaded.parameters())


MALFORMED: list[tuple[str, Any, bytes, int | None, str]] = [
    ("header longer than the file", {}, b"", 1 << 62, "a header of 4611686018427387904 cannot be"),
    ("header longer than any", b"{}" + b" " * 100, b"", 103, "a header of 103 cannot be"),
    ("not text", b"\xff\xfe", b"", None, "can't decode"),
    ("not JSON", b"{'a'}", b"", None, "Expecting property name"),
    ("not an object", [1], b"", None, "no JSON object"),
    ("too deep", b"[" * 100_000, b"", None, "nested too deeply"),
    ("twins", b'{"a": 1, "a": 2}', b"", None, "'a' comes twice"),
    ("an entry that is none", {"a": 3}, b"", None, "'a' has dtype None"),
    ("unknown dtype", {"a": entry("F7", [1], 0, 4)}, bytes(4), None, "'a' has dtype 'F7'"),
    ("dtype no name", {"a": entry([], [1], 0, 4)}, bytes(4), None, r"'a' has dtype \[\]"),  # type: ignore[arg-type]
    ("negative size", {"a": entry("F32", [-1], 0, 4)}, bytes(4), None, "'a' has shape"),
    ("size no integer", {"a": entry("F32", [1.0], 0, 4)}, bytes(4), None, "'a' has shape"),
    ("too many dimensions", {"a": entry("F32", [1] * 99, 0, 4)}, bytes(4), None, "'a' has shape"),
    ("one offset", {"a": entry("F32", [1], 0)}, bytes(4), None, "'a' has shape"),
    ("huge shape", {"a": entry("F32", [1 << 40, 1 << 40], 0, 4)}, bytes(4), None, "'a' has 4 bytes, expected 48357"),
    ("huge size", {"a": entry("F32", [1 << 70], 0, 4)}, bytes(4), None, "'a' has shape"),
    ("offsets the wrong way", {"a": entry("F32", [1], 4, 0)}, bytes(4), None, "'a' has -4 bytes"),
    ("offsets past the end", {"a": entry("F32", [2], 0, 8)}, bytes(4), None, "at byte 4, expected 8, after 'a'"),
    ("data left over", {"a": entry("F32", [1], 0, 4)}, bytes(5), None, "data ends at byte 5, expected 4, after 'a'"),
    ("overlap", {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12), None,
     "'b' starts at byte 4 of the data, expected 8, after 'a'"),
    ("a hole", {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, bytes(12), None,
     "'b' starts at byte 8 of the data, expected 4, after 'a'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("header", "data", "length", "says"), [m[1:] for m in MALFORMED], ids=[m[0] for m in MALFORMED]
)
def test_malformed_files_give_one_error(header: Any, data: bytes, length: Any, says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(ValueError, match=says) as error:
        RNNLM.from_pretrained(path, config=CONFIG)
    assert str(error.value).startswith(f"from_pretrained: '{path}' is damaged: ")
    with pytest.raises(ValueError, match=says):
        GPT2.from_pretrained(path, config=GPT2Config())


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for size in (*range(0, 40), *range(40, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is damaged"):
            RNNLM.from_pretrained(tmp_path)


# --- the map ---------------------------------------------------------------------------------------


def test_training_a_mapped_model_leaves_the_file_alone(tmp_path: Path) -> None:
    saved(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model, other = RNNLM.from_pretrained(tmp_path), RNNLM.from_pretrained(tmp_path)
    old = {n: a.copy() for n, a in other.state_dict().items()}
    model.loss_and_grads(np.array([[1, 2, 3]]), np.array([[2, 3, 4]]))
    optim.SGD(model.parameters(), lr=1.0).step()
    assert not np.array_equal(model.state_dict()["head.bias"], old["head.bias"])
    for name, value in other.state_dict().items():  # the other map of the same file
        np.testing.assert_array_equal(value, old[name])
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_saving_over_the_mapped_file(tmp_path: Path) -> None:
    """The model that is mapped, and another one: both keep their values, the file has the new ones."""
    saved(tmp_path)
    first, second = RNNLM.from_pretrained(tmp_path), RNNLM.from_pretrained(tmp_path)
    old = {n: a.copy() for n, a in second.state_dict().items()}
    inode = (tmp_path / "model.safetensors").stat().st_ino
    for parameter in first.parameters():
        parameter.data += 1
    first.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_ino != inode
    for name, value in first.state_dict().items():
        np.testing.assert_array_equal(second.state_dict()[name], old[name])
        np.testing.assert_array_equal(value, old[name] + 1)
        np.testing.assert_array_equal(RNNLM.from_pretrained(tmp_path).state_dict()[name], value)


def test_a_file_replaced_while_mapped(tmp_path: Path) -> None:
    model = saved(tmp_path)
    loaded = RNNLM.from_pretrained(tmp_path)
    saved(tmp_path / "new", seed=1)
    os.replace(tmp_path / "new/model.safetensors", tmp_path / "model.safetensors")
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name], value)


@LINUX
@pytest.mark.parametrize("size", [1, 4096, 8192, 20_000])
def test_forgetting_an_array_leaves_its_neighbours_alone(size: int, tmp_path: Path) -> None:
    """They share its first and its last page; what was written to them stays, what was written to it goes."""
    arrays = {name: np.zeros(n, np.uint8) for name, n in (("a", 5000), ("b", size), ("c", 5000))}
    save_file(arrays, tmp_path / "three")
    mapped = map_file(tmp_path / "three")
    for array in mapped.values():
        array += 1
    forget(mapped["b"])
    assert mapped["a"].all() and mapped["c"].all()
    assert size < 3 * mmap.PAGESIZE or not mapped["b"][size // 2]


MEASURE = """
import sys
import numpy as np
from seqkern import models, optim
def memory(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(key))
model_type, folder = getattr(models, sys.argv[1]), sys.argv[2]
anonymous, all_of_it = memory("RssAnon"), memory("VmRSS")
model = model_type.from_pretrained(folder)
assert all(p.data.flags.c_contiguous for p in model.parameters())
print(memory("RssAnon") - anonymous, memory("VmHWM") - all_of_it, memory("VmRSS") - all_of_it)
ids = np.array([[1, 2, 3]])
output, pull = model.vjp(ids)
"""


def measured(name: str, folder: Path) -> list[int]:
    """MiB that loading took: private memory, the peak of all memory, and all memory."""
    package = Path(seqkern.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, name, str(folder)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@LINUX
def test_loading_takes_no_memory_for_the_weights(tmp_path: Path) -> None:
    """A hundred and more MiB of weights stay in the file until they are used."""
    config = BERTConfig(vocab_size=50_000, hidden_size=512, num_hidden_layers=2, num_attention_heads=8)
    BERT(config, rng=np.random.default_rng(0)).save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size >> 20
    assert size > 100
    private, peak, _ = measured("BERT", tmp_path)
    # The kernel maps more of a file than the page that was touched, some up to 2 MiB: a copy would be all of it.
    assert private < 0.1 * size and peak < 0.5 * size


@LINUX
def test_matrices_the_file_has_transposed_are_held_once(tmp_path: Path) -> None:
    """GPT-2's are turned round, which takes a copy: what was read of the file goes back at once."""
    config = GPT2Config(vocab_size=100, n_positions=64, n_embd=768, n_layer=8, n_head=12)
    GPT2(config, rng=np.random.default_rng(0)).save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size >> 20
    assert size > 200
    private, peak, in_the_end = measured("GPT2", tmp_path)
    assert private < 1.1 * size and peak < 1.2 * size and in_the_end < 1.1 * size
