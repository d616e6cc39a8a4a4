"""Builds _hostcuda: the CUDA kernels' own text, compiled by the host's C++ compiler. No CUDA toolkit is needed.

``python tests/hostcuda/build.py [FOLDER] [--sanitize address,undefined]`` prints the path of the module. Objects
are kept in FOLDER (build/hostcuda) and compiled again when a file they include has changed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zlib
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
WARNINGS = ("-Wall", "-Wextra", "-Werror")
CODE = ("-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast")
FLAGS = (*CODE, *WARNINGS, "-DSEQKERN_DEVICE_ARRAYS")
HOST_SOURCES = tuple(f"tests/hostcuda/{name}.cpp" for name in ("module", "device", "runtime", "wgmma"))
BINDINGS = (
    "activation", "array", "attention", "attention_paged", "cuda_kernels", "device_array", "elementwise", "layer_norm",
    "layers", "output", "recurrent", "rope",
)  # fmt: skip


def kernels() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "src/kernels").glob("*_cuda.cu"))


def compiler() -> str | None:
    """The C++ compiler (as CXX="ccache c++"), or None when there is none or pybind11's headers are not installed."""
    try:
        import pybind11  # noqa: F401
    except ImportError:
        return None
    return os.environ.get("CXX", "c++") if shutil.which(_command()[0]) else None


def _includes() -> list[str]:
    import pybind11

    folders = [ROOT / "include", ROOT / "src", ROOT / "tests", pybind11.get_include(), sysconfig.get_paths()["include"]]
    return [f"-I{folder}" for folder in folders]


def _is_fresh(target: Path) -> bool:
    depends = target.with_suffix(".d")
    if not target.exists() or not depends.exists():
        return False
    files = depends.read_text().partition(":")[2].replace("\\\n", " ").split()
    built = target.stat().st_mtime
    return all(Path(file).exists() and Path(file).stat().st_mtime <= built for file in files)


def _compile(source: Path, target: Path, flags: list[str]) -> Path:
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    depends = ["-MMD", "-MF", str(target.with_suffix(".d"))]
    _run([*_command(), *flags, *depends, *language, "-c", str(source), "-o", str(target)])
    return target


def _command() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr[-4000:]}")


def patched(folder: Path, patches: Mapping[str, tuple[str, str]]) -> Path:
    """A copy of src/ in `folder` with text replaced: file -> (old, new). The old text must be there once."""
    shutil.copytree(ROOT / "src", folder / "src", dirs_exist_ok=True)
    for name, (old, new) in patches.items():
        text = (ROOT / name).read_text()
        if text.count(old) != 1:
            raise ValueError(f"{name} holds {text.count(old)} times {old!r}")
        (folder / name).write_text(text.replace(old, new))
    return folder


def build(folder: Path | None = None, sanitize: str = "", replaced: Collection[str] = ()) -> Path:
    """The path of the module. replaced: kernels whose text, and what it includes, is that in folder/src."""
    base = ROOT / "build/hostcuda" / sanitize.replace(",", "-")
    folder = folder or base
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, *_includes()]
    if sanitize == "thread":  # for the kernels alone; the runtime tells it what orders what
        flags += ["-DHOSTCUDA_THREAD_SANITIZER"]
    elif sanitize:
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    module = folder / f"_hostcuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    jobs, objects = [], []
    for source in (*HOST_SOURCES, *(f"src/bindings/{name}.cpp" for name in BINDINGS), *kernels()):
        patched_here = source in replaced
        home = base if replaced and not patched_here else folder  # what is not patched need not be built again
        target = home / (source.replace("/", "-") + ".o")
        objects.insert(0 if patched_here else len(objects), target)  # the linker keeps the first copy of a template
        if patched_here or not _is_fresh(target):
            first = [f"-I{folder / 'src'}"] if patched_here else []
            first += ["-fsanitize=thread"] if sanitize == "thread" and source.endswith(".cu") else []
            jobs.append(((folder if patched_here else ROOT) / source, target, [*first, *flags]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: _compile(*job), jobs))
    if jobs or not module.exists() or any(o.stat().st_mtime > module.stat().st_mtime for o in objects):
        fresh = module.with_suffix(".new")  # renamed: another process may have the old one loaded
        link = [f"-fsanitize={sanitize}"] if sanitize else []
        _run([*_command(), "-shared", "-pthread", *link, *map(str, objects), "-o", str(fresh)])
        fresh.replace(module)
    return module


def load(path: Path) -> ModuleType:
    """The module at `path`, under a name of its own: pybind11 hands out one module for a name."""
    name = f"hostcuda_{zlib.crc32(str(path).encode()):x}._hostcuda"
    loader = ExtensionFileLoader(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def stand_below_ops(module: Any, replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Puts `module` where the functional API looks for its kernels."""
    for name, ops_module in list(sys.modules.items()):
        if name.startswith("seqkern.ops.") and hasattr(ops_module, "_cpu"):
            replace(ops_module, "_cpu", module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--sanitize", default="")
    given: Any = parser.parse_args()
    print(build(given.folder, given.sanitize))


if __name__ == "__main__":
    main()
