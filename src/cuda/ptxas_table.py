"""Registers, spills and static shared memory of every CUDA kernel, as ptxas reports them: ptxas_table.txt.

``python src/cuda/ptxas_table.py [FILE...]`` compiles all kernels (or those of FILE, as lstm_cuda.cu) for sm_80 and
sm_90a with nvcc and writes their part of the table anew. It is checked in, so that a change of a kernel shows what it
did to them. Nothing is run.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("80", "90a")
NVCC = (
    "nvcc", "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-prec-div=false", "-Iinclude", "-Isrc",
    "-Xptxas", "-v", "-c",
)  # fmt: skip
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


def section(kernel: Path) -> str:
    table = {row for architecture in ARCHITECTURES for row in rows(kernel, architecture)}
    lines = [
        f"{architecture:8}{registers:10}{stack:7}{spilled:9}{shared:15}  {name}"
        for name, architecture, registers, stack, spilled, shared in sorted(table)
    ]
    return "\n".join([kernel.name, *lines])


def main(only: list[str]) -> None:
    kernels = sorted((ROOT / "src/kernels").glob("*_cuda.cu"))
    file = Path(__file__).with_suffix(".txt")
    known = {text.partition("\n")[0]: text for text in file.read_text().rstrip().split("\n\n")[1:]}
    head = f"{'arch':8}{'registers':>10}{'stack':>7}{'spilled':>9}{'static shared':>15}  kernel"
    sections = [known[k.name] if only and k.name not in only and k.name in known else section(k) for k in kernels]
    file.write_text("\n\n".join([head, *sections]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
