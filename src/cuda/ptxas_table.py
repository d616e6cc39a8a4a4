"""Registers, spills and static shared memory of every CUDA kernel, as ptxas reports them: ptxas_table.txt.

``python src/cuda/ptxas_table.py`` compiles all kernels for sm_80 and sm_90a with nvcc and writes the table anew. It
is checked in, so that a change of a kernel shows what it did to them. Nothing is run.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("80", "90a")
NVCC = ("nvcc", "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Iinclude", "-Isrc", "-Xptxas", "-v", "-c")
ENTRY = re.compile(
    r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers([^\n]*)",
    re.DOTALL,
)
Row = tuple[str, str, int, int, int, int]


def rows(kernel: Path, architecture: str) -> list[Row]:
    """(kernel, architecture, registers, stack, spilled bytes, static shared bytes) of one file."""
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    with tempfile.TemporaryDirectory() as folder:
        command = [*NVCC, code, str(kernel), "-o", f"{folder}/kernel.o"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = []
    for name, stack, stores, loads, registers, rest in ENTRY.findall(done.stderr + done.stdout):
        shared = re.search(r"(\d+) bytes smem", rest)
        spilled = int(stores) + int(loads)
        size = int(shared[1]) if shared else 0
        found.append((readable(name), f"sm_{architecture}", int(registers), int(stack), spilled, size))
    return found


def readable(mangled: str) -> str:
    """A kernel's name and template arguments."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"seqkern::|cuda::|\(anonymous namespace\)::|^void ", "", name)
    depth, end = 0, len(name)
    for i, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            end = i
            break
    return name[:end].replace(" >", ">")


def main() -> None:
    kernels = sorted((ROOT / "src/kernels").glob("*_cuda.cu"))
    lines = [f"{'arch':8}{'registers':>10}{'stack':>7}{'spilled':>9}{'static shared':>15}  kernel"]
    for kernel in kernels:
        lines += ["", kernel.name]
        table = {row for architecture in ARCHITECTURES for row in rows(kernel, architecture)}
        for name, architecture, registers, stack, spilled, shared in sorted(table):
            lines.append(f"{architecture:8}{registers:10}{stack:7}{spilled:9}{shared:15}  {name}")
    Path(__file__).with_suffix(".txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
