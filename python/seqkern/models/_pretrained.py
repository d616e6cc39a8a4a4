"""Models whose folders and names are Hugging Face's: reading, renaming, writing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..nn._arrays import Array, to_numpy
from ..nn.int8_linear import Int8Linear
from ..nn.module import Buffer, Module, Parameter
from ._files import CONFIG_NAME, WEIGHTS_NAME, Blank, adopt, blank, write_atomically
from ._mapped import map_file

P = TypeVar("P", bound="PretrainedModel")


class PretrainedModel(Module):
    """A model with Hugging Face's names in `named_parameters`, `state_dict` and its files.

    A subclass gives `_names()`, from its own names ('#' for a layer's index) to theirs, `prefix`, which
    part of theirs may be missing, and what else their files may hold.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    config: Any
    prefix: str = ""
    ignored: ClassVar[str] = r"$^"  # keys that hold no parameter
    tied: Mapping[str, str] = {}  # another name of a parameter -> its own

    def _names(self) -> dict[str, str]:
        raise NotImplementedError

    def _state(self, prefix: str = "") -> Any:
        names = self._names()
        for name, entry in super()._state():
            yield prefix + renamed(name, names), entry

    def _transposed(self, name: str) -> bool:
        """Whether Hugging Face keeps this matrix as [in, out]."""
        return False

    def initialise(self, std: float, rng: np.random.Generator) -> None:
        """N(0, std) in matrices; biases stay 0, norms 1 and 0. Nothing is drawn for a model to be loaded."""
        if isinstance(rng, Blank):
            return
        for _, parameter in self.named_parameters():
            if len(parameter.shape) > 1:
                parameter.data[...] = std * rng.standard_normal(parameter.shape)

    def state_dict(self) -> dict[str, Array]:
        """Name -> array in Hugging Face's form; the arrays are the parameters' own or views of them."""
        return {n: a.T if self._transposed(n) else a for n, a in super().state_dict().items()}

    def _checked_state(self, state: Mapping[str, Any], strict: bool) -> Any:
        """As `Module`'s; takes names with and without the model prefix."""
        if isinstance(state, Mapping):
            state = self._accepted(state)
            for name, value in state.items():
                if self._transposed(name) and getattr(value, "ndim", 0) == 2:
                    state[name] = value.T
        return super()._checked_state(state, strict)

    def _accepted(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state under this model's own names, without what is no parameter."""
        own: dict[str, Parameter | Buffer] = dict(self._state())
        values: dict[str, Any] = {}
        for key, value in state.items():
            if re.search(self.ignored, key):
                continue
            name = self._alias(key)
            bare = name.removeprefix(self.prefix)
            options = (name, self.prefix + bare, bare)
            found = next((n for n in options if n in own or n in self.tied), key)
            values[found] = value
        for other, name in self.tied.items():
            if other in values and other not in own:
                value = values.pop(other)
                if name not in values:
                    values[name] = value
                elif not np.array_equal(to_numpy(value, other), to_numpy(values[name], name)):
                    raise ValueError(f"load_state_dict: '{other}' differs from '{name}', to which it must be tied")
        return values

    def _alias(self, key: str) -> str:
        """The current spelling of a name that older or newer files spell otherwise."""
        return key

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors as Hugging Face does, each atomically."""
        from safetensors.numpy import save

        if any(isinstance(module, Int8Linear) for module in self.modules()):
            raise TypeError("save_pretrained: int8 weights are not written: save the model before quantising it")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {n: np.asarray(to_numpy(a, n), order="C") for n, a in self.state_dict().items()}
        write_atomically(folder / WEIGHTS_NAME, save(arrays, metadata={"format": "pt"}))
        text = json.dumps(self.config.to_hf(), indent=2, sort_keys=True)
        write_atomically(folder / CONFIG_NAME, f"{text}\n".encode())

    @classmethod
    def from_pretrained(cls: type[P], path: str | os.PathLike[str], config: Any = None) -> P:
        """A model in eval mode from a folder, or from one .safetensors file plus `config`.

        The file is mapped: its arrays are the parameters, read when they are used and copied where they are written
        to. Replace it by renaming another over it, as `save_pretrained` does; do not write into it.
        """
        path = Path(path)
        if config is None:
            if not path.is_dir():
                raise ValueError(f"from_pretrained: '{path}' is not a folder, so config= is needed")
            config = cls.Config.from_hf(read_hf_config(path / CONFIG_NAME, cls.model_types))  # type: ignore[attr-defined]
        weights = read_weights(path)
        config = cls._fitted(config, weights)
        _refuse_other_size(config, weights)
        kinds = {value.dtype for value in weights.values() if value.dtype.kind in "fV"}
        dtype = kinds.pop() if len(kinds) == 1 and np.dtype(np.float16) not in kinds else np.float32
        model = cls(config, dtype=dtype, rng=blank())  # type: ignore[call-arg]
        adopt(model, weights)
        return model.eval()

    @classmethod
    def _fitted(cls, config: Any, weights: Mapping[str, Any]) -> Any:
        """The config with what only the weights tell, such as the heads."""
        return config


def renamed(name: str, names: Mapping[str, str]) -> str:
    """'layers.3.out.bias' is 'h.3.c_proj.bias' where names say 'layers.#.out': 'h.#.c_proj'."""
    if name in names:
        return names[name]
    stem, _, kind = name.rpartition(".")
    theirs = names[re.sub(r"(?<=\.)\d+", "#", stem)]
    for index in re.findall(r"(?<=\.)\d+", stem):
        theirs = theirs.replace("#", index, 1)
    return f"{theirs}.{kind}"


def read_hf_config(path: Path, model_types: tuple[str, ...]) -> dict[str, Any]:
    """A config.json for one of these architectures."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"from_pretrained: '{path}' is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"from_pretrained: '{path}' must hold a JSON object")
    if values.get("model_type") not in model_types:
        raise ValueError(
            f"from_pretrained: '{path}' has model_type {values.get('model_type')!r}, expected one of {model_types}"
        )
    return values


def known_fields(config_type: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are fields of the config dataclass; a config.json holds many more."""
    names = {field.name for field in dataclasses.fields(config_type)}
    return {name: value for name, value in values.items() if name in names}


def refuse(values: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """ValueError where a setting that changes the result is not the one supported."""
    for name, value in supported.items():
        if values.get(name, value) != value:
            raise ValueError(f"from_pretrained: {name} must be {value!r}, got {values[name]!r}")


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a folder (one file, or shards with their index) or of one file."""
    files = [path]
    if path.is_dir():
        files, index = [path / WEIGHTS_NAME], path / f"{WEIGHTS_NAME}.index.json"
        if index.exists() and not files[0].exists():
            shards = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
            if any(Path(name).name != name for name in shards.values()):
                raise ValueError(f"from_pretrained: '{index}' names a file outside its folder")
            files = [path / name for name in sorted(set(shards.values()))]
    weights: dict[str, np.ndarray] = {}
    for file in files:
        weights |= map_file(file)
    return weights


def _refuse_other_size(config: Any, weights: Mapping[str, np.ndarray]) -> None:
    """ValueError before much more is allocated than the weights can fill; near misses are named key by key."""
    expected, held = count_parameters(config), sum(value.size for value in weights.values())
    if expected > 2 * held:
        raise ValueError(f"from_pretrained: the config is of {expected} parameters, the weights are but {held}")


def count_parameters(config: Any) -> int:
    """Parameters of the model of this config, a tied head counted once; nothing is allocated."""
    return int(config.count_parameters())
