"""Prints normal_table.h: python src/simd/normal_table.py > src/simd/normal_table.h"""

import math

import numpy as np

DEGREE, PIECES, PER_UNIT = 7, 16, 3.0


def coefficients(i: int) -> np.ndarray:
    """Of d = PER_UNIT a - i, |d| <= 1/2: the polynomial through Q at Chebyshev points. The first piece has d >= 0."""
    points = 0.5 * np.cos((2 * np.arange(DEGREE + 1) + 1) * np.pi / (2 * DEGREE + 2))
    if i == 0:
        points = points / 2 + 0.25
    q = [0.5 * math.erfc((i + d) / PER_UNIT / math.sqrt(2)) for d in points]
    return np.linalg.solve(np.vander(points, increasing=True), q)


def main() -> None:
    rows = np.array([coefficients(i) for i in range(PIECES)]).T
    print("// Q(a), the tail of the normal distribution, by pieces: normal_table.py.")
    print("#pragma once\n")
    print("namespace seqkern::SEQKERN_ISA {\n")
    print(f"inline constexpr int kTailDegree = {DEGREE}, kTailPieces = {PIECES};")
    print(f"inline constexpr float kTailPerUnit = {PER_UNIT:.1f}f;")
    print("// [k][i]: of d^k, d = kTailPerUnit a - i, |d| <= 1/2.")
    print("// clang-format off")
    print("alignas(64) inline constexpr float kTail[kTailDegree + 1][kTailPieces] = {")
    for row in rows:
        numbers = [f"{np.float32(v):.9g}f" for v in row]
        lines = [", ".join(numbers[start : start + 7]) for start in range(0, PIECES, 7)]
        print("    {" + ",\n     ".join(lines) + "},")
    print("};\n// clang-format on\n\n}  // namespace seqkern::SEQKERN_ISA")


main()
