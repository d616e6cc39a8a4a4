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

from ..nn._arrays import to_numpy
from ..nn.module import Module

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
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(path)
    weights_path = path / WEIGHTS_NAME if path.is_dir() else path
    if config is None:
        if not path.is_dir():
            raise ValueError(f"from_pretrained: '{path}' is not a folder, so config= is needed")
        config = read_config(path / CONFIG_NAME, config_type)
    try:
        return config, load_file(weights_path)
    except SafetensorError as error:
        raise ValueError(f"from_pretrained: '{weights_path}' is damaged: {error}") from error


def restore_model(
    model_type: Callable[..., M], config: Any, weights: dict[str, np.ndarray], like: str
) -> M:
    """A model in eval mode with these weights; it has the dtype of the one called `like`."""
    dtype = weights[like].dtype if like in weights else np.float32
    model = model_type(config, dtype=dtype, rng=np.random.default_rng(0))
    model.load_state_dict(weights)
    return model.eval()


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
