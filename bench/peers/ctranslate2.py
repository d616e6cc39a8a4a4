"""CTranslate2 on the CPU: GPT-2, by its own converter's description of it; inference only."""

from __future__ import annotations

import tempfile
from typing import Any

import ctranslate2
import numpy as np

from .. import zoo
from ..tasks import Array, Entry, UnsupportedError
from ..zoo import ModelTask

NAME = "ctranslate2"

_threads: dict[str, int] = {"intra_threads": 1, "inter_threads": 1}


def prepare(threads: int) -> None:
    """Models loaded from now on compute on so many threads."""
    _threads["intra_threads"] = threads


def model(task: ModelTask) -> Entry:
    """results: logits."""
    generator = _loaded(task)
    ids = ctranslate2.StorageView.from_array(task.x.astype(np.int32))
    lengths = ctranslate2.StorageView.from_array(np.full(len(task.x), task.x.shape[1], np.int32))

    def call() -> Any:
        return generator.forward_batch(ids, lengths)

    return Entry(call, lambda: [np.array(call(), np.float32)])


def model_decode(task: ModelTask) -> Entry:
    """One token after a prompt whose keys and values it keeps; results: logits."""
    generator = _loaded(task)
    prompt, token = ([f"{k}" for k in row] for row in (task.x[0], task.decode[0]))  # type: ignore[index]
    options: dict[str, Any] = {"static_prompt": prompt, "include_prompt_in_result": False, "max_length": 1}

    def call(**more: Any) -> Any:
        return generator.generate_batch([token], **options, **more)[0]

    def results() -> list[Array]:
        return [np.array(call(return_logits_vocab=True).logits[0], np.float32).reshape(1, 1, -1)]

    return Entry(call, results)


def _loaded(task: ModelTask) -> Any:
    if task.model != zoo.GPT2:
        raise UnsupportedError("it has no such model, or its converter does not read transformers 5's")
    if task.dtype != "float32" and task.dtype not in ctranslate2.get_supported_compute_types("cpu"):
        raise UnsupportedError(f"it has no {task.dtype} on this machine")
    from ctranslate2.converters import transformers as converter

    spec = converter._MODEL_LOADERS["GPT2Config"].get_model_spec(zoo.torch_module(task.model))
    spec.register_vocabulary([f"{k}" for k in range(zoo.VOCABULARY[task.model])])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.validate()
    compute = "int8" if task.int8 else task.dtype
    spec.optimize(quantization=None if compute == "float32" else compute)
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        return ctranslate2.Generator(folder, device="cpu", compute_type=compute, **_threads)
