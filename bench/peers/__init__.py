"""The libraries seqkern is measured against, one module each, imported only when asked for.

A peer module has `NAME`, `prepare(threads)` and any of the functions named in `JOBS`, each of which
returns an `Entry` or raises `UnsupportedError`. What a module lacks, that peer cannot do.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from ..tasks import Entry, UnsupportedError


@dataclass(frozen=True)
class PeerInfo:
    """Where a peer's code is and which packages it needs; the first one's version is shown."""

    module: str
    packages: tuple[str, ...]


NUMPY = "numpy"
KNOWN = {
    "torch": PeerInfo(".torch", ("torch",)),
    "onnxruntime": PeerInfo(".onnxruntime", ("onnxruntime", "onnx")),
    "openvino": PeerInfo(".openvino", ("openvino", "onnx")),
    "torch.compile": PeerInfo(".torch_compile", ("torch",)),
    "ctranslate2": PeerInfo(".ctranslate2", ("ctranslate2", "torch", "transformers")),
    NUMPY: PeerInfo(".numpy", ("numpy",)),
}
# What a peer module may define, and what to say of one that does not.
JOBS = {
    "recurrent_forward": "it has no recurrent layers",
    "recurrent_train": "it does not train",
    "ragged": "it has no packed sequences",
    "charrnn_train": "it does not train",
    "cell": "it has no single cells",
    "linear": "nothing is written to measure its linear layer",
    "linear_train": "it does not train, or nothing is written to measure it",
    "norm_forward": "nothing is written to measure its norms",
    "norm_train": "it does not train",
    "attention": "nothing is written to measure its attention",
    "attention_train": "it does not train",
    "conv": "nothing is written to measure its convolution",
    "model": "nothing is written to run these models on it",
    "model_decode": "nothing is written to measure its decoding",
    "model_train": "it does not train",
}
FRAMEWORKS = ("torch", "onnxruntime", "openvino")


def version(name: str) -> str | None:
    """A peer's installed version, without importing it; None when it is not installed."""
    try:
        return metadata.version(KNOWN[name].packages[0])
    except metadata.PackageNotFoundError:
        return None


def missing(name: str) -> list[str]:
    """The packages a peer needs and that are not installed; nothing is imported to find out."""
    return [package for package in KNOWN[name].packages if find_spec(package) is None]


@dataclass(frozen=True)
class Peer:
    """One loaded peer."""

    name: str
    module: ModuleType

    def entry(self, job: str, *arguments: Any) -> Entry:
        """The peer's entry for a job such as `recurrent_forward`; raises UnsupportedError."""
        function = getattr(self.module, job, None)
        if function is None:
            raise UnsupportedError(JOBS[job])
        entry: Entry = function(*arguments)
        return entry


def load(names: Sequence[str], threads: int) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run, set to `threads`, and for each of the others why it cannot."""
    loaded: list[Peer] = []
    skipped: dict[str, str] = {}
    for name in names:
        lacking = missing(name)
        if lacking:
            skipped[name] = f"not installed: {', '.join(lacking)}"
            continue
        try:
            module = importlib.import_module(KNOWN[name].module, __name__)
        except ImportError as error:
            skipped[name] = f"cannot be imported: {error}"
            continue
        module.prepare(threads)
        loaded.append(Peer(name, module))
    return loaded, skipped
