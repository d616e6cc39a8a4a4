"""Model folders on disk: `config.json` beside `model.safetensors`, written so that a crash or a
full disk never leaves a half-written file in place of a good one."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..nn._arrays import aligned_zeros, to_numpy
from ..nn.module import Module
from ._mapped import forget, map_file

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"

C = TypeVar("C")
M = TypeVar("M", bound=Module)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a temporary file in the same folder, then rename it over `path`."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_model(model: Any, folder: str | os.PathLike[str]) -> None:
    """Write a model's config dataclass and its parameters into `folder`, made if need be."""
    from safetensors.numpy import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: np.asarray(to_numpy(p.data, name), order="C") for name, p in model.named_parameters()
    }
    write_atomically(folder / WEIGHTS_NAME, save(arrays, metadata={"format": "np"}))
    text = json.dumps(dataclasses.asdict(model.config), indent=2)
    write_atomically(folder / CONFIG_NAME, f"{text}\n".encode())


def load_model(
    path: str | os.PathLike[str], config_type: type[C], config: C | None = None
) -> tuple[C, dict[str, np.ndarray]]:
    """The config and weights of a folder, or of one .safetensors file plus `config`.

    ValueError says what is wrong with a file's content; a missing file is a FileNotFoundError.
    """
    path = Path(path)
    weights_path = path / WEIGHTS_NAME if path.is_dir() else path
    if config is None:
        if not path.is_dir():
            raise ValueError(f"from_pretrained: '{path}' is not a folder, so config= is needed")
        config = read_config(path / CONFIG_NAME, config_type)
    return config, map_file(weights_path)


def restore_model(
    model_type: Callable[..., M], config: Any, weights: dict[str, np.ndarray], like: str
) -> M:
    """A model in eval mode on these weights; it has the dtype of the one called `like`."""
    dtype = weights[like].dtype if like in weights else np.float32
    model = model_type(config, dtype=dtype, rng=blank())
    adopt(model, weights)
    return model.eval()


def adopt(model: Module, weights: dict[str, np.ndarray]) -> None:
    """As `load_state_dict`, but the arrays become the parameters' own where dtype and order allow.

    `weights` is left empty, and the memory behind an array that had to be copied goes back: no weight is held twice.
    """
    _, values = model._checked_state(weights, True)
    weights.clear()
    for name in list(values):
        entry, value = values.pop(name)
        flags = value.flags
        if value.dtype == entry.dtype and flags.c_contiguous and flags.aligned and flags.writeable:
            entry.data = value
        else:
            entry.data = value.astype(entry.dtype, order="C")
            forget(value)


class Blank(np.random.Generator):
    """A generator of zeros, for parameters that something else fills in: they take no memory until then."""

    def uniform(self, *args: Any) -> Any:  # type: ignore[override]
        return np.zeros(args[-1]).view(_Untouched)

    def standard_normal(self, *args: Any) -> Any:  # type: ignore[override]
        return np.zeros(args[-1]).view(_Untouched)


class _Untouched(np.ndarray):
    """Zeros that the system has not had to provide yet."""

    def astype(self, dtype: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        return aligned_zeros(self.shape, dtype)


def blank() -> Blank:
    return Blank(np.random.PCG64(0))


def read_config(path: Path, config_type: type[C]) -> C:
    """A config dataclass from a JSON file; unknown keys are refused by name."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"from_pretrained: '{path}' is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"from_pretrained: '{path}' must hold a JSON object")
    known = {field.name for field in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"from_pretrained: '{path}' has unknown keys {unknown}")
    try:
        return config_type(**values)
    except TypeError as error:
        raise ValueError(f"from_pretrained: '{path}': {error}") from error
